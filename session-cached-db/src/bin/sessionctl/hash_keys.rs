//! Moves sessions that are stored under plain keys to hashed keys.

use crate::args::{Connection, Rewrite};
use crate::connect::{codec, store};
use crate::exit::{Exit, Failure};
use crate::interrupt::Interrupt;
use crate::output::Output;
use crate::sweep::{Words, sweep};

const WORDS: Words = Words { doing: "hashing", done: "given hashed keys" };

pub(crate) async fn run(
    at: &Connection,
    command: &Rewrite,
    output: &Output,
    interrupt: &Interrupt,
) -> Result<Exit, Failure> {
    let codec = codec(&command.format, command.compress_from)?;
    let store = interrupt
        .ends(store(at, command.write.caching, codec, &command.write.application.key_prefix))
        .await?;
    let step = async |after: Option<&_>| store.hash_plain_keys(after, command.write.pace.batch).await;
    sweep(&store, &WORDS, command.write.pace, output, interrupt, step).await
}
