//! Readiness of servers: a question and its answer for each kind.

/// Bytes to send after connecting, and bytes that occur in the answer of a server that is ready.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Probe {
    pub(crate) send: &'static [u8],
    pub(crate) expect: &'static [u8],
}

impl Probe {
    /// Returns `true` if the server on this port of 127.0.0.1 is ready, as far as one exchange shows.
    pub(crate) fn answers(&self, port: u16) -> bool {
        self.ask(port).unwrap_or(false)
    }

    fn ask(&self, port: u16) -> std::io::Result<bool> {
        use std::io::{Read, Write};
        let patience = std::time::Duration::from_secs(1);
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
        let mut connection = std::net::TcpStream::connect_timeout(&address, patience)?;
        connection.set_read_timeout(Some(patience))?;
        connection.write_all(self.send)?;
        let (mut answer, mut chunk) = (Vec::new(), [0; 1024]);
        loop {
            let read = connection.read(&mut chunk)?;
            answer.extend_from_slice(chunk.get(..read).unwrap_or_default());
            if answer.windows(self.expect.len()).any(|window| window == self.expect) {
                return Ok(true);
            }
            if read == 0 || answer.len() > 64 * 1024 {
                return Ok(false);
            }
        }
    }
}

pub(crate) const PING: Probe = Probe { send: b"PING\r\n", expect: b"+PONG" };

/// An alert, to which a server that speaks TLS answers with another one.
pub(crate) const TLS_ALERT: Probe = Probe { send: b"\x15\x03\x01\0\x02\x02\x28", expect: b"\x15\x03" };

pub(crate) const VERSION: Probe = Probe { send: b"version\r\n", expect: b"VERSION" };

/// A startup message for the user `postgres` and the database `sessions`. The answer asks for a password.
pub(crate) const PG_STARTUP: Probe =
    Probe { send: b"\0\0\0\x29\0\x03\0\0user\0postgres\0database\0sessions\0\0", expect: b"SCRAM-SHA-256" };

/// The same to a server that asks for none.
pub(crate) const PG_OPEN: Probe = Probe { send: PG_STARTUP.send, expect: b"server_version" };

/// The greeting of both servers, which open their port only when they are set up.
pub(crate) const MYSQL_GREETING: Probe = Probe { send: b"", expect: b"_password" };
