//! The notes of rotations: their table, its statements, and the trait. The table stands beside the session table and has no
//! schema version, so nodes that do not know it go on beside it.

use session_core::{MaskedKey, PersistenceError, Rotation, Rotations, SchemaProblem, StoredKey, Timestamp};
use sqlx::Connection as _;

use crate::sql::checkout::Checkout;
use crate::sql::columns::Kind;
use crate::sql::connections::Connections as _;
use crate::sql::persistence::{Backend, SqlPersistence, instant, statement, text};
use crate::sql::schema::{Schema, SchemaCheck};
use crate::sql::table::TableName;
use crate::sql::value::{Value, Values};

/// The columns of the table. None is nullable: a note that reveals no key has an empty one.
const COLUMNS: [(&str, Kind); 4] = [
    ("old_key", Kind::Text),
    ("new_key", Kind::Text),
    ("masked_key", Kind::Bytes),
    ("expires_at", Kind::Integer),
];

#[expect(private_bounds, reason = "implemented in this crate only")]
impl<B: Backend> SqlPersistence<B> {
    /// Removes notes that expired at `before` or earlier, at most `limit`. Returns `true` if more may be left.
    pub(crate) async fn remove_notes(&self, before: Timestamp, limit: u32) -> Result<bool, PersistenceError> {
        if self.rotations.is_left_alone() {
            return Ok(false);
        }
        // Look first: a statement on a table that is missing would be an error in the server's log, in each round of the
        // reaper.
        if !self.rotations.was_seen() && !self.look_for_notes().await? {
            self.rotations.leave_alone();
            return Ok(false);
        }
        let parameters = [instant(before), Value::Integer(limit.into())];
        match self.write(statement::<B>(&self.rotations.delete, parameters)).await {
            // An operator has dropped the table.
            Err(PersistenceError::Schema(SchemaProblem::Missing { .. })) => {
                self.rotations.note_seen(false);
                Ok(false)
            }
            // The sessions are still to be reaped: the notes may be another role's to remove, or a program may have locked them.
            Err(error) => {
                self.rotations.leave_alone();
                tracing::warn!(target: "db_backends", event = "rotation_notes_kept", database = B::NAME, %error,
                    "expired notes of rotations were not removed in this round; if that goes on, grant DELETE on their table, end \
                     what locks it, or let another node reap");
                Ok(false)
            }
            Ok(removed) => Ok(removed >= u64::from(limit.max(1))),
        }
    }

    async fn look_for_notes(&self) -> Result<bool, PersistenceError> {
        let is_there = match Box::pin(self.check_rotations()).await {
            Ok(()) => true,
            // There is none, or it is another program's.
            Err(PersistenceError::Schema(_)) => false,
            Err(error) => return Err(error),
        };
        self.rotations.note_seen(is_there);
        Ok(is_there)
    }
}

impl<B: Backend> Rotations for SqlPersistence<B> {
    async fn note_rotation(&self, rotation: &Rotation) -> Result<(), PersistenceError> {
        let masked_key = rotation.masked_key.as_ref().map_or(&b""[..], MaskedKey::as_bytes);
        let values = [
            text(&rotation.old),
            text(&rotation.new),
            Value::Bytes(masked_key),
            instant(rotation.expires_at),
        ];
        let noted = match self.write(statement::<B>(&self.rotations.note, values)).await {
            Err(PersistenceError::AlreadyExists) => {
                let [old, new, _, expires_at] = values;
                self.write(statement::<B>(&self.rotations.prolong, [expires_at, old, new, expires_at])).await
            }
            noted => noted,
        };
        noted.map_err(|error| of_rotations(error, &self.table))?;
        self.rotations.note_seen(true);
        Ok(())
    }

    async fn rotations(
        &self,
        old: &StoredKey,
        now: Timestamp,
        limit: u32,
    ) -> Result<Vec<Rotation>, PersistenceError> {
        let parameters = [text(old), instant(now), Value::Integer(limit.into())];
        let rows = self.read_all(statement::<B>(&self.rotations.find, parameters)).await;
        let rows = rows.map_err(|error| of_rotations(error, &self.table))?;
        Ok(rows.iter().filter_map(rotation::<B>).filter(|rotation| rotation.old == *old).collect())
    }

    async fn migrate_rotations(&self) -> Result<(), PersistenceError> {
        let table = self.table.clone();
        let writer: Checkout<_> = self.connections.writer().await?;
        let migrated = writer
            .perform(move |connection| Box::pin(async move { migrate::<B>(connection, &table).await }))
            .await;
        migrated.map_err(|error| Self::ERRORS.writing(&error, &self.table))??;
        self.rotations.note_seen(true);
        Ok(())
    }

    fn rotations_sql(&self) -> String {
        B::ROTATIONS.iter().map(|statement| self.table.fill(statement) + ";\n").collect()
    }

    async fn check_rotations(&self) -> Result<(), PersistenceError> {
        let table = self.table.clone();
        let reader: Checkout<_> = self.connections.reader().await?;
        let checked = reader
            .perform(move |connection| Box::pin(async move { check::<B>(connection, &table).await }))
            .await;
        Ok(checked.map_err(|error| Self::ERRORS.reading(&error, &self.table))??)
    }
}

/// Returns the error of a statement on the notes. If a table is missing, it is that of the notes.
fn of_rotations(error: PersistenceError, table: &TableName) -> PersistenceError {
    match error {
        PersistenceError::Schema(SchemaProblem::Missing { .. }) => missing(table).into(),
        error => error,
    }
}

fn missing(table: &TableName) -> SchemaProblem {
    SchemaProblem::MissingRotations { table: table.rotations_table() }
}

/// Reads the note in a row. `None` if it is not one of ours.
fn rotation<B: Values>(row: &B::Row) -> Option<Rotation> {
    let key = |column| {
        let bytes = B::text(row, column).ok()??;
        StoredKey::parse(std::str::from_utf8(bytes).ok()?).ok()
    };
    let expires_at = Timestamp::from_micros(B::integer(row, "expires_at").ok()?);
    let masked_key = B::bytes(row, "masked_key").ok()?;
    let rotation = Rotation::new(key("old_key")?, key("new_key")?, expires_at);
    Some(rotation.with_masked_key(MaskedKey::from_bytes(masked_key)))
}

/// Checks that the table is there, with the columns that it needs.
async fn check<B: Schema>(connection: &mut B::Connection, table: &TableName) -> sqlx::Result<SchemaCheck> {
    let name = table.rotations_table();
    // In a transaction, because a pooler may run each part of a statement outside of one on another connection.
    let mut transaction = connection.begin().await?;
    let found = B::columns(&mut transaction, &name).await;
    transaction.rollback().await?;
    let found = found?;
    if found.is_empty() {
        return Ok(Err(missing(table)));
    }
    let wrong = COLUMNS.iter().find(|(column, kind)| {
        let data_type = B::type_of(*kind);
        !found.iter().any(|found| found.is_required(column, data_type))
    });
    let foreign = |(column, kind): &(&str, Kind)| {
        let reason = format!("it has no column {column} {} not null", B::type_of(*kind));
        SchemaProblem::Foreign { table: name.clone(), reason }
    };
    Ok(wrong.map_or(Ok(()), |column| Err(foreign(column))))
}

/// Makes the table, unless it is there.
async fn migrate<B: Schema>(connection: &mut B::Connection, table: &TableName) -> sqlx::Result<SchemaCheck> {
    match check::<B>(connection, table).await? {
        Err(SchemaProblem::MissingRotations { .. }) => {}
        checked => return Ok(checked),
    }
    let Err(error) = make::<B>(connection, table).await else { return Ok(Ok(())) };
    // Another node may have made it at the same moment.
    match check::<B>(connection, table).await? {
        Ok(()) => Ok(Ok(())),
        Err(_) => Err(error),
    }
}

async fn make<B: Schema>(connection: &mut B::Connection, table: &TableName) -> sqlx::Result<()> {
    let mut transaction = connection.begin().await?;
    for statement in B::ROTATIONS {
        if let Err(error) = B::run(&mut transaction, table.sql(statement)).await {
            // At once: a dropped transaction would keep a pooler's connection until the next use.
            transaction.rollback().await?;
            return Err(error);
        }
    }
    transaction.commit().await
}
