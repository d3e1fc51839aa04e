//! Members looked for at addresses that a person named.

use can_sync::agent::Tuning;

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_of_which_nothing_else_is_known_is_found_where_its_name_leads() {
    let (mut a, mut b) = (Device::start().await, Device::start().await);
    pair(&a, &b).await;
    all_in_sync(&[&a, &b], 1).await;
    let b_port = b.net.bind.unwrap().port();
    a.down().await;
    b.down().await;
    (a.net.unreachable, b.net.unreachable) = (vec![b.node_id], vec![a.node_id]);
    // The first name leads nowhere, the second to the device itself, the third to the other one.
    let names = ["localhost:1".to_owned(), a.net.bind.unwrap().to_string()];
    let names = names.into_iter().chain([format!("localhost:{b_port}")]);
    let named_peers = names.map(|name| name.parse().unwrap()).collect();
    a.up().await;
    b.up().await;
    let held = b.add([KIB]).await;
    tokio::time::timeout(Duration::from_secs(2), async {
        until("they meet", &[&a, &b], async || a.hashes().await == hashes_of(&held)).await;
    })
    .await
    .expect_err("nothing leads from one to the other");
    a.handle().tune(Tuning { named_peers, ..Tuning::default() }).await.unwrap();
    until("they meet", &[&a, &b], async || a.hashes().await == hashes_of(&held)).await;
}
