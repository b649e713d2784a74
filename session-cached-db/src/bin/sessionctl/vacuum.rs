//! Rewrites a SQLite file without its empty pages.

use serde::Serialize;

use crate::args::Connection;
use crate::connect::{Access, database};
use crate::exit::{Exit, Failure};
use crate::output::Output;

#[derive(Serialize)]
struct Report {
    vacuumed: bool,
}

pub(crate) async fn run(at: &Connection, output: &Output) -> Result<Exit, Failure> {
    let database = database(at, Access::Write).await?;
    if !database.vacuum().await? {
        return Err(Failure::Usage(
            "this database is a server, which uses its empty space again by itself; `sessionctl doctor` says if it has \
             too much of it"
                .into(),
        ));
    }
    output.show(&Report { vacuumed: true }, |_| {
        "The file was rewritten, and gives back space from now on.".to_owned()
    })?;
    Ok(Exit::Done)
}
