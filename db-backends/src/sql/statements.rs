//! The statements, made from the list of columns and from how each database writes SQL.

use std::sync::Arc;

use session_core::{ExpiryWrite, Timestamp};
use sqlx::{AssertSqlSafe, SqlSafeStr as _, SqlStr};

use crate::sql::columns::{self, Column};
use crate::sql::table::TableName;
use crate::sql::value::{RESULT, Values};

/// The SQL dialect of a database: what the statements of all databases need, and the statements that are its
/// own.
///
/// In a statement, `{sessions}` stands for the quoted name of the session table, `{rotations}` for that of the notes of
/// rotations, `{key}` for the column `key`, `{times}` for the columns that a list of sessions shows, and `{result}` for the
/// name of the only column of an answer. A question mark is a parameter.
pub(crate) struct Syntax {
    /// The character around the name of a table.
    pub(crate) quote: char,
    /// The column `key`, which is a reserved word in some databases.
    pub(crate) key: &'static str,
    pub(crate) greatest: &'static str,
    pub(crate) least: &'static str,
    /// Parameters are numbered, `$1`, `$2` and so on.
    pub(crate) numbers_parameters: bool,
    /// Removes the rows with the keys that [`Backend::with_keys`] adds.
    ///
    /// [`Backend::with_keys`]: crate::sql::persistence::Backend::with_keys
    pub(crate) delete_all: DeleteRows<&'static str>,
    pub(crate) delete_expired: DeleteRows<&'static str>,
    pub(crate) list_by_subject: &'static str,
    pub(crate) delete_rotations: &'static str,
    pub(crate) now: &'static str,
    /// The reports of written keys. `None` if the database has no way to make them.
    pub(crate) reports: Option<ReportSyntax>,
}

/// The additions to statements that write, by which the database reports the keys that they have written. In them,
/// `{channel}` stands for the name that listeners know, and `{tag}` for that of the writer.
pub(crate) struct ReportSyntax {
    /// The end of a statement that reports the column `key` of each row that it wrote.
    pub(crate) key: &'static str,
    /// The end of a statement that reports an old key besides, which is its last parameter.
    pub(crate) both_keys: &'static str,
    pub(crate) delete_expired: DeleteRows<&'static str>,
}

/// The statements, each with its parameters in this order.
pub(crate) struct Statements {
    /// Returns the row with this key, now, unless it has expired.
    pub(crate) load: SqlStr,
    /// Adds a row: the value of every column, in the order of [`Column::ALL`].
    pub(crate) insert: SqlStr,
    /// Writes the columns of [`Column::updated`] and the expiry, which [`ExpiryWrite::Replace`] has twice, to
    /// the row with this key, now, unless it has expired, and with this version, unless that is null.
    pub(crate) update: ByExpiry<SqlStr>,
    /// Makes expiry and last use later, for the row with this key, now, unless it has expired, and if it was
    /// last used at an instant or before.
    pub(crate) touch: SqlStr,
    /// Does the same as `update`, with the new key before the key.
    pub(crate) rename: ByExpiry<SqlStr>,
    /// Returns one row if there is one with this key, now, that has not expired.
    pub(crate) is_there: SqlStr,
    /// Removes the row with this key.
    pub(crate) delete: SqlStr,
    /// Removes the rows with some keys, and returns the column `key` of each.
    pub(crate) delete_all: DeleteRows<SqlStr>,
    /// Removes rows that expired at an instant or before, up to a limit.
    pub(crate) delete_expired: DeleteRows<SqlStr>,
    /// Counts the rows that expired at an instant or before, which is there twice.
    pub(crate) count_expired: SqlStr,
    /// Returns key and times of the rows of a subject, now, that have not expired, from a key on, up to a
    /// limit, in the order of the bytes of their keys.
    pub(crate) list_by_subject: SqlStr,
    /// Returns the rows from a key on, up to a limit, in the order of the bytes of their keys.
    pub(crate) scan: SqlStr,
    /// Returns the database's clock, in microseconds since 1970. No parameters.
    pub(crate) now: SqlStr,
}

impl Statements {
    pub(crate) fn new(syntax: &Syntax, table: &TableName) -> Self {
        Self::make(syntax, &syntax.delete_expired, ["", ""], |template| syntax.fill(template, table))
    }

    /// Makes statements that report what they write, in the name of `tag`, which is a number. `rename` has the old key once
    /// more at the end of its parameters. Returns `None` if the database reports nothing.
    pub(crate) fn reporting(syntax: &Syntax, table: &TableName, tag: &str) -> Option<Self> {
        let reports = syntax.reports.as_ref()?;
        let channel = table.notices_channel();
        let sql = |template: &str| {
            syntax.fill(&template.replace("{channel}", &channel).replace("{tag}", tag), table)
        };
        Some(Self::make(syntax, &reports.delete_expired, [reports.key, reports.both_keys], sql))
    }

    fn make(
        syntax: &Syntax,
        delete_expired: &DeleteRows<&str>,
        [report, report_both]: [&str; 2],
        sql: impl Fn(&str) -> SqlStr,
    ) -> Self {
        let reporting = |template: &str| sql(&format!("{template}{report}"));
        let by_expiry = |template: &str| ByExpiry {
            extend: sql(&template.replace("{expiry}", "expires_at = {greatest}(?, expires_at)")),
            replace: sql(&template.replace("{expiry}", "expires_at = ?, reap_at = {least}(?, reap_at)")),
        };
        Self {
            load: sql("SELECT {columns} FROM {sessions} WHERE {key} = ? AND expires_at > ?"),
            insert: reporting("INSERT INTO {sessions} ({all_columns}) VALUES ({values})"),
            update: by_expiry(&format!(
                "UPDATE {{sessions}} SET {{updates}}, {{expiry}}
                 WHERE {{key}} = ? AND expires_at > ? AND version = coalesce(?, version){report}",
            )),
            touch: reporting(
                "UPDATE {sessions}
                        SET expires_at = {greatest}(?, expires_at), last_seen_at = {greatest}(?, last_seen_at)
                        WHERE {key} = ? AND expires_at > ? AND last_seen_at <= ?",
            ),
            rename: by_expiry(&format!(
                "UPDATE {{sessions}} SET {{updates}}, {{expiry}}, {{key}} = ?
                 WHERE {{key}} = ? AND expires_at > ? AND version = coalesce(?, version){report_both}",
            )),
            is_there: sql("SELECT 1 FROM {sessions} WHERE {key} = ? AND expires_at > ?"),
            delete: reporting("DELETE FROM {sessions} WHERE {key} = ?"),
            delete_all: syntax.delete_all.map(|template| {
                // The report comes before the key, because it begins the list of what is returned.
                let returning = if report.is_empty() { " RETURNING {key}" } else { report };
                let also = if report.is_empty() { "" } else { ", {key}" };
                sql(&template.replace("{returning}", &format!("{returning}{also}")))
            }),
            delete_expired: delete_expired.map(|template| sql(template)),
            count_expired: sql("SELECT count(*) AS {result} FROM {sessions}
                                WHERE reap_at <= ? AND expires_at <= ?"),
            list_by_subject: sql(syntax.list_by_subject),
            scan: sql("SELECT {columns} FROM {sessions} WHERE {key} >= ? ORDER BY {key} LIMIT ?"),
            now: sql(syntax.now),
        }
    }
}

/// A statement that writes a record, for each [`ExpiryWrite`]. Two, because some databases write an index
/// whenever a statement names a column of it, whether its value changes or not.
pub(crate) struct ByExpiry<S> {
    /// Makes the expiry later, or leaves it, and touches no index for it.
    pub(crate) extend: S,
    /// Makes the expiry what the record has.
    pub(crate) replace: S,
}

impl ByExpiry<SqlStr> {
    pub(crate) const fn get(&self, expiry: ExpiryWrite) -> &SqlStr {
        match expiry {
            ExpiryWrite::Extend => &self.extend,
            ExpiryWrite::Replace => &self.replace,
        }
    }
}

/// The statements that remove rows and return columns of each. Which rows, [`Statements`] says. Of rows that have expired,
/// these are the columns `key` and `subject`.
pub(crate) struct DeleteRows<S> {
    /// Returns the rows, and removes them unless there is another statement for that.
    ///
    /// Of the session table, the rows to reap are those that are due, with the column `expires_at`, too: a row whose
    /// session lives on is postponed instead of removed.
    pub(crate) rows: S,
    /// The statement that removes the returned rows, in the same transaction: it ends with their keys.
    pub(crate) by_keys: Option<S>,
    /// The statement that postpones rows, in the same transaction: it ends with their keys.
    pub(crate) postpone: Option<S>,
}

impl<S> DeleteRows<S> {
    /// Returns the statements of a database that can return what it removes.
    #[cfg_attr(
        not(any(test, feature = "django", feature = "postgres", feature = "sqlite")),
        expect(dead_code, reason = "the others return nothing of what they delete")
    )]
    pub(crate) const fn returning(rows: S) -> Self {
        Self { rows, by_keys: None, postpone: None }
    }

    pub(crate) fn map<T>(&self, fill: impl Fn(&S) -> T) -> DeleteRows<T> {
        DeleteRows {
            rows: fill(&self.rows),
            by_keys: self.by_keys.as_ref().map(&fill),
            postpone: self.postpone.as_ref().map(&fill),
        }
    }
}

/// The statements that follow in the same transaction, once the rows of [`DeleteRows`] are read.
#[derive(Clone)]
pub(crate) struct Rest {
    delete: SqlStr,
    /// The statement that postpones sessions that live on, and the instant after which they end.
    postpone: Option<(SqlStr, Timestamp)>,
}

impl DeleteRows<SqlStr> {
    /// Returns the statement that removes the returned rows, if there is one, where none is postponed.
    pub(crate) fn removal(&self) -> Option<Rest> {
        Some(Rest { delete: self.by_keys.clone()?, postpone: None })
    }

    /// Returns the statements that follow, if there are any.
    pub(crate) fn rest(&self, before: Timestamp) -> Option<Rest> {
        let postpone = self.postpone.clone().map(|postpone| (postpone, before));
        Some(Rest { delete: self.by_keys.clone()?, postpone })
    }
}

impl Rest {
    /// Returns each statement that is left to run, with its rows.
    #[cfg_attr(
        not(any(feature = "sqlite", feature = "mysql")),
        expect(dead_code, reason = "Postgres has one statement for all")
    )]
    pub(crate) fn split<'r, B: Values>(&self, rows: &'r [B::Row]) -> Vec<(&SqlStr, Vec<&'r B::Row>)> {
        let (over, living) = match &self.postpone {
            Some((_, before)) => rows.iter().partition(|row| columns::is_over::<B>(row, *before)),
            None => (rows.iter().collect::<Vec<_>>(), Vec::new()),
        };
        let mut left = vec![(&self.delete, over)];
        left.extend(self.postpone.iter().map(|(postpone, _)| postpone).zip([living]));
        left.retain(|(_, rows)| !rows.is_empty());
        left
    }
}

impl Syntax {
    pub(crate) fn fill(&self, template: &str, table: &TableName) -> SqlStr {
        let name = |column: Column| if column == Column::Key { self.key } else { column.name() };
        let times = [Column::Key, Column::CreatedAt, Column::ExpiresAt, Column::LastSeenAt].map(name);
        let updates = Column::updated().map(|column| format!("{} = ?", name(column)));
        let text = template
            .replace("{columns}", &Column::of_record().map(name).collect::<Vec<_>>().join(", "))
            .replace("{all_columns}", &Column::ALL.map(name).join(", "))
            .replace("{values}", &Column::ALL.map(|_| "?").join(", "))
            .replace("{updates}", &updates.collect::<Vec<_>>().join(", "))
            .replace("{times}", &times.join(", "))
            .replace("{greatest}", self.greatest)
            .replace("{least}", self.least)
            .replace("{result}", RESULT)
            .replace("{key}", self.key)
            .replace("{sessions}", &self.quoted(table.as_str()))
            .replace("{rotations}", &self.quoted(&table.rotations_table()));
        let text = if self.numbers_parameters { numbered(&text) } else { text };
        // Safe, because the name is an identifier and the rest is text of this crate.
        AssertSqlSafe(Arc::<str>::from(text)).into_sql_str()
    }

    fn quoted(&self, name: &str) -> String {
        format!("{quote}{name}{quote}", quote = self.quote)
    }
}

/// Returns `text` with `$1`, `$2` and so on for its question marks.
fn numbered(text: &str) -> String {
    let mut parts = text.split('?');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.zip(1..).fold(first, |text, (part, number)| format!("{text}${number}{part}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYNTAX: Syntax = Syntax {
        quote: '"',
        key: "key",
        greatest: "greatest",
        least: "least",
        numbers_parameters: true,
        delete_all: DeleteRows::returning("DELETE {key} = ?{returning}"),
        delete_expired: DeleteRows::returning(""),
        list_by_subject: "SELECT {times}",
        delete_rotations: "",
        now: "SELECT 0 AS {result}",
        reports: Some(ReportSyntax {
            key: " REPORT '{channel} {tag} ' {key}",
            both_keys: " REPORT '{channel} {tag} ' {key} ?",
            delete_expired: DeleteRows::returning("REPORT '{channel}'"),
        }),
    };

    #[test]
    fn statements_that_write_report_their_keys_and_others_do_not() {
        let statements = Statements::reporting(&SYNTAX, &TableName::default(), "7").unwrap();
        for write in [&statements.insert, &statements.update.extend, &statements.touch, &statements.delete] {
            assert!(write.as_str().ends_with(" REPORT 'notices_sessions 7 ' key"), "{}", write.as_str());
        }
        let delete_all = statements.delete_all.rows.as_str();
        assert_eq!(delete_all, "DELETE key = $1 REPORT 'notices_sessions 7 ' key, key");
        let (extend, replace) = (statements.rename.extend.as_str(), statements.rename.replace.as_str());
        assert!(extend.ends_with(" REPORT 'notices_sessions 7 ' key $10"), "{extend}");
        assert!(replace.ends_with(" REPORT 'notices_sessions 7 ' key $11"), "{replace}");
        assert_eq!(statements.delete_expired.rows.as_str(), "REPORT 'notices_sessions'");
        for read in [&statements.load, &statements.is_there, &statements.scan, &statements.now] {
            assert!(!read.as_str().contains("REPORT"), "{}", read.as_str());
        }
    }

    #[test]
    fn statements_name_every_column_once_and_number_their_parameters() {
        let statements = Statements::new(&SYNTAX, &TableName::default());
        assert_eq!(
            statements.insert.as_str(),
            "INSERT INTO \"sessions\" (key, payload, created_at, expires_at, last_seen_at, version, subject, reap_at) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)"
        );
        let ByExpiry { extend, replace } = statements.update;
        for (update, expiry) in [
            (extend, "expires_at = greatest($5, expires_at)\n"),
            (replace, "expires_at = $5, reap_at = least($6, reap_at)\n"),
        ] {
            let expected =
                "UPDATE \"sessions\" SET payload = $1, last_seen_at = $2, version = $3, subject = $4, ";
            assert!(update.as_str().starts_with(&format!("{expected}{expiry}")), "{}", update.as_str());
        }
        assert_eq!(statements.list_by_subject.as_str(), "SELECT key, created_at, expires_at, last_seen_at");
        assert_eq!(statements.now.as_str(), "SELECT 0 AS result");
    }
}
