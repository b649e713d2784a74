//! The inspection of a table and its server, for operators.

use async_trait::async_trait;
use session_core::{PersistenceError, Timestamp};

use crate::sql::checkout::Checkout;
use crate::sql::connections::Connections as _;
use crate::sql::persistence::{Backend, SqlPersistence, instant, statement};
use crate::{Inspect, Inspection};

#[async_trait]
impl<B: Backend> Inspect for SqlPersistence<B> {
    async fn inspect(&self) -> Result<Inspection, PersistenceError> {
        let table = self.table.clone();
        let reader: Checkout<_> = self.connections.reader().await?;
        let inspection = reader
            .perform(move |connection| Box::pin(async move { B::inspect(connection, &table).await }))
            .await;
        let mut inspection = inspection.map_err(|error| Self::ERRORS.reading(&error, &self.table))?;
        inspection.findings = self.examine().await?;
        Ok(inspection)
    }

    async fn count_expired(&self, before: Timestamp) -> Result<u64, PersistenceError> {
        let query = statement::<B>(&self.sql.count_expired, [instant(before), instant(before)]);
        let count = self.read_number(query).await?;
        Ok(count.and_then(|count| count.try_into().ok()).unwrap_or_default())
    }

    async fn vacuum(&self) -> Result<bool, PersistenceError> {
        let writer: Checkout<_> = self.connections.writer().await?;
        let done = writer.perform(|connection| Box::pin(async move { B::vacuum(connection).await })).await;
        done.map_err(|error| Self::ERRORS.writing(&error, &self.table))
    }
}
