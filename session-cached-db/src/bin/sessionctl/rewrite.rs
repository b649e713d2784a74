//! The commands that rewrite the sessions that need it: `reseal` seals each session with the first key of the ring, `hash-keys`
//! moves those that are stored under plain keys to hashed keys.

use session_cached_db::StoredKey;

use crate::args::{Connection, Rewrite};
use crate::connect::{codec, sealing_keys, store};
use crate::exit::{Exit, Failure};
use crate::interrupt::Interrupt;
use crate::output::Output;
use crate::sweep::{Words, sweep};

#[derive(Clone, Copy)]
pub(crate) enum Rewriting {
    HashKeys,
    Reseal,
}

impl Rewriting {
    const fn words(self) -> Words {
        match self {
            Self::HashKeys => Words { doing: "hashing", done: "given hashed keys" },
            Self::Reseal => Words { doing: "sealing", done: "sealed anew" },
        }
    }
}

pub(crate) async fn run(
    rewriting: Rewriting,
    at: &Connection,
    command: &Rewrite,
    output: &Output,
    interrupt: &Interrupt,
) -> Result<Exit, Failure> {
    if matches!(rewriting, Rewriting::Reseal) && sealing_keys(&command.format)?.is_none() {
        return Err(Failure::Usage(
            "no sealing keys; set SESSIONCTL_SEALING_KEYS, or pass --sealing-keys-file".into(),
        ));
    }
    let codec = codec(&command.format, command.compress_from)?;
    let write = &command.write;
    let store = interrupt.ends(store(at, write.caching, codec, &write.application.key_prefix)).await?;
    let step = async |after: Option<&StoredKey>| match rewriting {
        Rewriting::HashKeys => store.hash_plain_keys(after, write.pace.batch).await,
        Rewriting::Reseal => store.reseal(after, write.pace.batch).await,
    };
    sweep(&store, &rewriting.words(), write.pace, output, interrupt, step).await
}
