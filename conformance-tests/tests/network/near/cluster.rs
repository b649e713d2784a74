//! Near caches in front of a cluster of Redis, with a connection to each master.

use super::{
    BOUND, Nodes, login, memory_answers_without_a_round_trip, memory_does_not_answer, open, read, warm,
    write, writes_are_seen,
};
use crate::failover::{ask, until};
use crate::{Link, Links};

pub async fn memory_over_a_cluster_answers_without_a_round_trip(links: &Links) {
    memory_answers_without_a_round_trip(links.only()).await;
}

pub async fn writes_are_seen_in_time_by_nodes_with_near_caches_on_a_cluster(links: &Links) {
    writes_are_seen(links.only()).await;
}

/// Returns the ports of a cluster's masters.
fn masters(link: &Link) -> Vec<u16> {
    let hosts = link.direct.trim_start_matches("redis+cluster://").trim_end_matches('/');
    hosts.split(',').map(|host| host.rsplit_once(':').unwrap().1.parse().unwrap()).collect()
}

pub async fn slot_that_moves_is_a_lost_channel(links: &Links) {
    let link = links.only();
    let (nodes, ports) = (Nodes::before(link).await, masters(link));
    let cookie = login(&nodes.here).await;
    let stored = *open(&nodes.here, &cookie).await.stored_key().unwrap();
    let name = format!("session:{}", stored.as_str());
    warm(&nodes.here, &cookie, 0).await;
    warm(&nodes.there, &cookie, 0).await;
    let slot: u16 = ask(ports[0], &["CLUSTER", "KEYSLOT", &name]).await.unwrap();
    let slot = slot.to_string();
    let mut from = None;
    for port in &ports {
        // Redirections are errors.
        if ask::<Option<Vec<u8>>>(*port, &["GET", &name]).await.is_some() {
            from = Some(*port);
        }
    }
    let from = from.expect("a master has the slot");
    let to = *ports.iter().find(|port| **port != from).unwrap();
    let forgotten = nodes.there.stats().near_forgotten;
    let [from_id, to_id] = [
        ask::<String>(from, &["CLUSTER", "MYID"]).await.unwrap(),
        ask::<String>(to, &["CLUSTER", "MYID"]).await.unwrap(),
    ];
    ask::<()>(to, &["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from_id]).await.unwrap();
    ask::<()>(from, &["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to_id]).await.unwrap();
    ask::<()>(from, &["MIGRATE", "127.0.0.1", &to.to_string(), &name, "0", "5000"]).await.unwrap();
    for port in [to, from] {
        ask::<()>(port, &["CLUSTER", "SETSLOT", &slot, "NODE", &to_id]).await.unwrap();
    }
    write(&nodes.here, &cookie, 1).await;
    tokio::time::sleep(BOUND).await;
    assert_eq!(read(&nodes.there, &cookie).await, Some(1), "another node is behind by more than the bound");
    until("the channel is given up", || async { nodes.there.stats().near_forgotten > forgotten }).await;
    warm(&nodes.there, &cookie, 1).await;
    open(&nodes.here, &cookie).await.flush().await.expect("no request fails");
    assert_eq!(read(&nodes.there, &cookie).await, None, "a session that was ended is shown");
}

pub async fn dead_master_of_a_cluster_costs_memory_and_no_session(links: &Links) {
    let link = links.only();
    let (nodes, ports) = (Nodes::before(link).await, masters(link));
    for port in &ports {
        ask::<()>(*port, &["CONFIG", "SET", "cluster-require-full-coverage", "no"]).await.unwrap();
    }
    let mut cookies = Vec::new();
    for _ in 0..12 {
        let cookie = login(&nodes.here).await;
        warm(&nodes.there, &cookie, 0).await;
        cookies.push(cookie);
    }
    assert!(ask::<()>(ports[0], &["SHUTDOWN", "NOSAVE", "NOW", "FORCE"]).await.is_none(), "it answered");
    tokio::time::sleep(BOUND).await;
    for cookie in &cookies {
        memory_does_not_answer(&nodes.there, cookie, Some(0)).await;
        open(&nodes.here, cookie).await.flush().await.expect("no request fails");
        assert_eq!(read(&nodes.there, cookie).await, None, "a session that was ended is shown");
    }
}
