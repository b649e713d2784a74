//! Tests of the proxies that break connections.

use std::sync::Arc;
use std::time::Duration;

use conformance_tests::libtest_mimic::Trial;
use conformance_tests::proxy::{Mode, Proxy};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::trial;
use crate::{Failure, block_on};

pub(super) fn all() -> Vec<Trial> {
    vec![trial("proxy::every_mode_of_the_proxy_disturbs", every_mode_of_the_proxy_disturbs)]
}

/// A server that answers each byte with two.
async fn echo() -> Result<u16, Failure> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut byte = [0];
                while client.read_exact(&mut byte).await.is_ok()
                    && client.write_all(&[byte[0]; 2]).await.is_ok()
                {}
            });
        }
    });
    Ok(port)
}

fn every_mode_of_the_proxy_disturbs() -> Result<(), Failure> {
    block_on(async {
        let proxy = Arc::new(Proxy::before(([127, 0, 0, 1], echo().await?).into()).await?);
        let ask = async |client: &mut TcpStream| -> Vec<u8> {
            let _ = client.write_all(b"x").await;
            let mut answer = Vec::new();
            let read = async {
                while answer.len() < 2 && client.read_buf(&mut answer).await.is_ok_and(|read| read > 0) {}
            };
            let _ = tokio::time::timeout(Duration::from_millis(300), read).await;
            answer
        };
        for (mode, passes) in [
            (Mode::Pass, 2),
            (Mode::Delay(Duration::from_millis(50)), 2),
            (Mode::Cut(1), 1),
            (Mode::BlackHole, 0),
            (Mode::Hold, 0),
            // There are no reports on the connection.
            (Mode::HoldReports, 2),
            (Mode::Deaf, 0),
            (Mode::Reset, 0),
        ] {
            let mut client = TcpStream::connect(proxy.address()).await?;
            assert_eq!(ask(&mut client).await, b"xx", "before {mode:?}");
            let before = proxy.injected();
            proxy.set(mode);
            let answer = ask(&mut client).await;
            assert_eq!(answer.len(), passes, "{mode:?}");
            let disturbs = !matches!(mode, Mode::Pass | Mode::HoldReports);
            assert_eq!(proxy.injected() > before, disturbs, "{mode:?}");
            proxy.set(Mode::Pass);
            let mut client = TcpStream::connect(proxy.address()).await?;
            assert_eq!(ask(&mut client).await, b"xx", "after {mode:?}");
        }
        Ok(())
    })
}
