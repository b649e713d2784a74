//! Seals every session with the first key of the ring, unless it is already.

use crate::args::{Connection, Rewrite};
use crate::connect::{codec, sealing_keys, store};
use crate::exit::{Exit, Failure};
use crate::interrupt::Interrupt;
use crate::output::Output;
use crate::sweep::{Words, sweep};

const WORDS: Words = Words { doing: "sealing", done: "sealed anew" };

pub(crate) async fn run(
    at: &Connection,
    command: &Rewrite,
    output: &Output,
    interrupt: &Interrupt,
) -> Result<Exit, Failure> {
    if sealing_keys(&command.format)?.is_none() {
        return Err(Failure::Usage(
            "no sealing keys; set SESSIONCTL_SEALING_KEYS, or pass --sealing-keys-file".into(),
        ));
    }
    let codec = codec(&command.format, command.compress_from)?;
    let store = interrupt
        .ends(store(at, command.write.caching, codec, &command.write.application.key_prefix))
        .await?;
    let step = async |after: Option<&_>| store.reseal(after, command.write.pace.batch).await;
    sweep(&store, &WORDS, command.write.pace, output, interrupt, step).await
}
