//! Whole agents over real QUIC of which some do not want everything: what comes, what does not, who
//! is known to hold what, and what a change of the expression moves.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::collections::BTreeSet;

use can_sync::core::attributes::{Attribute, Attributes};
use can_sync::core::expression::Expression;
use can_sync::core::ids::{Digest, Hash, HashAlgorithm, NodeId};
use can_sync::core::want::Want;
use can_sync::store::{Metadata, NewAsset};

mod common;

use common::group::{Device, pair, until};
use common::{content, digest};

#[path = "common/agent.rs"]
mod agent;
#[path = "copies/killed.rs"]
mod killed;

fn wants(text: &str) -> Want {
    Want { expression: Some(Expression::parse(text).unwrap()) }
}

/// A running device that wants this before it meets others.
async fn choosing(text: &str) -> Device {
    let device = Device::start().await;
    device.handle().set_want(wants(text)).await.unwrap();
    device
}

/// Adds contents with a media type.
async fn add(device: &Device, media_type: &str, seeds: std::ops::Range<u64>) -> BTreeSet<Hash> {
    let mut assets = Vec::new();
    for seed in seeds {
        let content = content(seed, 3_000 + seed as usize);
        let digest: Digest = digest(HashAlgorithm::Blake3, &content);
        let attributes = Attributes::named("a").with_text(Attribute::MediaType, media_type);
        let metadata = Metadata { attributes, ..Metadata::default() };
        assets.push(NewAsset { digest, content, metadata });
    }
    let hashes = assets.iter().map(|asset| asset.digest.hash).collect();
    for result in device.store().put(assets).await.unwrap() {
        result.unwrap();
    }
    device.handle().check().await.unwrap();
    hashes
}

/// The other devices that this one knows to hold the asset.
async fn holders(device: &Device, hash: &Hash) -> BTreeSet<NodeId> {
    let (_, holders) = device.handle().keeper().holders(*hash).await.unwrap();
    holders.into_iter().map(|holder| holder.node_id).collect()
}

/// Returns once all are in sync and the first device knows of the copies of each of the hashes.
async fn known_copies(devices: &[&Device], expected: &[(&BTreeSet<Hash>, &[NodeId])]) {
    until("copies are known", devices, async || {
        if !devices.iter().all(|device| device.status().in_sync) {
            return false;
        }
        for (hashes, nodes) in expected {
            for hash in *hashes {
                if holders(devices[0], hash).await != nodes.iter().copied().collect() {
                    return false;
                }
            }
        }
        true
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_a_device_wants_comes_and_the_others_know_what_it_holds() {
    let full = Device::start().await;
    let photos = add(&full, "image/png", 10..20).await;
    let videos = add(&full, "video/mp4", 20..35).await;
    let phone = choosing("type=image/*").await;
    pair(&full, &phone).await;
    known_copies(&[&full, &phone], &[(&photos, &[phone.node_id]), (&videos, &[])]).await;
    assert_eq!(phone.hashes().await, photos);
    let copies = phone.status().copies;
    assert_eq!((copies.missing, copies.unwanted), (0, 15), "{copies:?}");
    assert_eq!(phone.status().store.assets, 10, "what it only knows does not count");
    // New ones, while both are connected.
    let more_photos = add(&full, "image/png", 40..45).await;
    let more_videos = add(&full, "video/mp4", 45..50).await;
    let new = [(&more_photos, &[phone.node_id][..]), (&more_videos, &[])];
    known_copies(&[&full, &phone], &new).await;
    assert_eq!(phone.hashes().await, &photos | &more_photos);
    // The phone learns that the other holds everything.
    let of_full = [(&more_videos, &[full.node_id][..]), (&photos, &[full.node_id])];
    known_copies(&[&phone, &full], &of_full).await;
    // What it adds itself is kept and goes to the others, wanted or not.
    let own = add(&phone, "video/mp4", 50..52).await;
    known_copies(&[&phone, &full], &[(&own, &[full.node_id])]).await;
    assert!(phone.hashes().await.is_superset(&own));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wider_expression_brings_exactly_what_it_adds_and_a_narrower_one_deletes_nothing() {
    let full = Device::start().await;
    let photos = add(&full, "image/png", 110..120).await;
    let videos = add(&full, "video/mp4", 120..130).await;
    let texts = add(&full, "text/plain", 130..135).await;
    let phone = choosing("type=image/*").await;
    pair(&full, &phone).await;
    known_copies(&[&full, &phone], &[(&photos, &[phone.node_id]), (&videos, &[])]).await;
    let wider = wants("type=image/* or type=video/*");
    let change = phone.handle().keeper().dry_run(&wider).await.unwrap();
    assert_eq!((change.come, change.go, change.come_unknown), (10, 0, 0), "{change:?}");
    let bytes: u64 = (120..130).map(|seed| 3_000 + seed).sum();
    assert_eq!(change.come_bytes, bytes);
    assert_eq!(phone.hashes().await, photos, "it was only a question");
    phone.handle().set_want(wider).await.unwrap();
    let both = &photos | &videos;
    known_copies(&[&full, &phone], &[(&both, &[phone.node_id]), (&texts, &[])]).await;
    assert_eq!(phone.hashes().await, both);
    let narrower = wants("type=text/*");
    let change = phone.handle().keeper().dry_run(&narrower).await.unwrap();
    assert_eq!((change.come, change.go), (5, 20), "{change:?}");
    phone.handle().set_want(narrower).await.unwrap();
    let all = &both | &texts;
    known_copies(&[&full, &phone], &[(&all, &[phone.node_id])]).await;
    assert_eq!(phone.hashes().await, all, "what is no longer wanted stays");
    phone.handle().set_want(Want::default()).await.unwrap();
    let more = add(&full, "audio/mpeg", 140..142).await;
    known_copies(&[&full, &phone], &[(&more, &[phone.node_id])]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_is_not_asked_for_what_it_only_knows_and_the_holder_is_when_it_comes() {
    let mut full = Device::start().await;
    let photos = add(&full, "image/png", 210..215).await;
    let videos = add(&full, "video/mp4", 215..225).await;
    let phone = choosing("type=image/*").await;
    pair(&full, &phone).await;
    known_copies(&[&full, &phone], &[(&photos, &[phone.node_id]), (&videos, &[])]).await;
    full.down().await;
    // A third device meets the phone alone.
    let third = Device::start().await;
    pair(&phone, &third).await;
    until("it has what the phone has and knows of the rest", &[&third], async || {
        third.hashes().await == photos && third.status().copies.missing == 10
    })
    .await;
    assert!(!third.status().in_sync, "it lacks what it wants");
    for hash in &videos {
        assert_eq!(holders(&third, hash).await, [].into(), "the phone does not hold it");
    }
    full.up().await;
    let all = &photos | &videos;
    until("the rest came from the one who has it", &[&third, &full], async || {
        third.hashes().await == all && third.status().in_sync
    })
    .await;
    assert_eq!(phone.hashes().await, photos);
    known_copies(&[&phone, &full, &third], &[(&videos, &[full.node_id, third.node_id])]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expression_over_copies_chooses_among_what_is_here() {
    let full = Device::start().await;
    let photos = add(&full, "image/png", 610..613).await;
    let videos = add(&full, "video/mp4", 613..618).await;
    let phone = choosing("type=image/*").await;
    pair(&full, &phone).await;
    known_copies(&[&full, &phone], &[(&photos, &[phone.node_id]), (&videos, &[])]).await;
    let choose = async |device: &Device, text: &str| {
        let expression = Expression::parse(text).unwrap();
        let (chosen, next) = device.handle().keeper().choose(&expression, 0).await.unwrap();
        assert_eq!(next, None);
        chosen.iter().map(|asset| (asset.hash, asset.copies)).collect::<BTreeSet<_>>()
    };
    let with =
        |hashes: &BTreeSet<Hash>, copies| hashes.iter().map(|hash| (*hash, copies)).collect();
    assert_eq!(choose(&full, "copies<1").await, with(&videos, 0));
    assert_eq!(choose(&full, "copies>=1 and size>1K").await, with(&photos, 1));
    assert_eq!(choose(&full, "copies<1 and type=image/*").await, BTreeSet::new());
    assert_eq!(choose(&phone, "copies>=1").await, with(&photos, 1), "only what is here");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_too_few_copies_comes_to_a_device_that_wants_it_and_the_rest_does_not() {
    let full = Device::start().await;
    let photos = add(&full, "image/png", 710..715).await;
    let videos = add(&full, "video/mp4", 715..725).await;
    let (phone, vault) = (choosing("type=image/*").await, choosing("type=text/*").await);
    pair(&full, &phone).await;
    pair(&full, &vault).await;
    let of_photos = [full.node_id, phone.node_id];
    let known = [(&photos, &of_photos[..]), (&videos, &of_photos[..1])];
    known_copies(&[&vault, &full, &phone], &known).await;
    let endangered = wants("copies<2");
    let change = vault.handle().keeper().dry_run(&endangered).await.unwrap();
    assert_eq!((change.come, change.go), (10, 0), "{change:?}");
    vault.handle().set_want(endangered).await.unwrap();
    known_copies(&[&full, &vault, &phone], &[(&videos, &[vault.node_id])]).await;
    assert_eq!(vault.hashes().await, videos, "photos are on two devices");
    // Its own copies do not change what it wants.
    let change = vault.handle().keeper().dry_run(&wants("copies<2")).await.unwrap();
    assert_eq!((change.come, change.go, change.stop), (0, 0, 0), "{change:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_asset_comes_when_a_tag_makes_it_wanted() {
    let full = Device::start().await;
    let hashes = add(&full, "image/png", 310..313).await;
    let phone = choosing("tag=keep").await;
    pair(&full, &phone).await;
    known_copies(&[&full, &phone], &[(&hashes, &[])]).await;
    let hash = *hashes.first().unwrap();
    let asset = full.store().lookup(hash).await.unwrap().unwrap();
    let metadata = Metadata { tags: vec!["keep".into()], ..asset.metadata.clone() };
    full.store().set_metadata(hash, &metadata, None).await.unwrap();
    full.handle().settle(hash).await.unwrap();
    let only = BTreeSet::from([hash]);
    known_copies(&[&full, &phone], &[(&only, &[phone.node_id])]).await;
    assert_eq!(phone.hashes().await, only);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_known_of_holders_and_wanted_survives_a_restart() {
    let mut full = Device::start().await;
    let photos = add(&full, "image/png", 410..415).await;
    let videos = add(&full, "video/mp4", 415..420).await;
    let mut phone = choosing("type=image/*").await;
    pair(&full, &phone).await;
    known_copies(&[&full, &phone], &[(&photos, &[phone.node_id]), (&videos, &[])]).await;
    phone.down().await;
    full.down().await;
    full.up().await;
    for hash in &photos {
        assert_eq!(holders(&full, hash).await, [phone.node_id].into(), "the phone is away");
    }
    for hash in &videos {
        assert_eq!(holders(&full, hash).await, [].into());
    }
    until("copies are counted", &[&full], async || {
        full.status().copies.census.is_some_and(|census| census.one_copy == 5 && census.known == 10)
    })
    .await;
    phone.up().await;
    assert_eq!(phone.status().copies.wants, "type=image/*");
    known_copies(&[&full, &phone], &[(&photos, &[phone.node_id]), (&videos, &[])]).await;
    assert_eq!(phone.hashes().await, photos);
}
