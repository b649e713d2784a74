//! The binding of values to statements, and their reading from rows.

use sqlx::{Database, Encode, Type};

use crate::sql::connector::Query;

/// A parameter of a statement.
#[derive(Clone, Copy)]
pub(crate) enum Value<'a> {
    Text(&'a str),
    Bytes(&'a [u8]),
    Integer(i64),
    OptionalText(Option<&'a str>),
    /// Text for a database that takes it as bytes.
    #[cfg(feature = "mysql")]
    OptionalBytes(Option<&'a [u8]>),
    OptionalInteger(Option<i64>),
}

/// The name of the only column of a statement that returns one number.
pub(crate) const RESULT: &str = "result";

/// The binding and reading of values in one kind of database. Columns are read by name.
pub(crate) trait Values: Database {
    /// Binds `value` as the next parameter.
    fn bind(query: Query<Self>, value: Value<'_>) -> Query<Self>;

    /// Reads a column of text, which may have any bytes. `None` is null.
    fn text<'r>(row: &'r Self::Row, column: &str) -> sqlx::Result<Option<&'r [u8]>>;

    /// Reads a column of bytes.
    fn bytes<'r>(row: &'r Self::Row, column: &str) -> sqlx::Result<&'r [u8]>;

    /// Reads a column that holds a number.
    fn integer(row: &Self::Row, column: &str) -> sqlx::Result<i64>;

    /// Reads the column `key`, whatever bytes it has. `None` if it is of a type that comes after all keys.
    fn key(row: &Self::Row) -> Option<&[u8]>;
}

/// Binds `value` as the type that it has here.
pub(crate) fn bind<'a, B>(query: Query<B>, value: Value<'a>) -> Query<B>
where
    B: Database,
    &'a str: Encode<'a, B> + Type<B>,
    &'a [u8]: Encode<'a, B> + Type<B>,
    i64: Encode<'a, B> + Type<B>,
    Option<&'a str>: Encode<'a, B>,
    Option<&'a [u8]>: Encode<'a, B>,
    Option<i64>: Encode<'a, B>,
{
    match value {
        Value::Text(text) => query.bind(text),
        Value::Bytes(bytes) => query.bind(bytes),
        Value::Integer(integer) => query.bind(integer),
        Value::OptionalText(text) => query.bind(text),
        #[cfg(feature = "mysql")]
        Value::OptionalBytes(bytes) => query.bind(bytes),
        Value::OptionalInteger(integer) => query.bind(integer),
    }
}
