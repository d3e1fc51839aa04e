//! One large asset from several devices at once.

use std::os::unix::fs::MetadataExt as _;

use super::*;

const MIB: usize = KIB * KIB;

/// Three devices of one group. The third is away while the others come to hold a large asset.
async fn two_hold_what_the_third_missed(size: usize) -> [Device; 3] {
    let [a, b, mut c] = [Device::start().await, Device::start().await, Device::start().await];
    pair(&a, &b).await;
    pair(&a, &c).await;
    all_in_sync(&[&a, &b, &c], 2).await;
    c.down().await;
    a.add([size]).await;
    all_in_sync(&[&a, &b], 1).await;
    [a, b, c]
}

/// Returns once the device's partials hold this many bytes on disk.
async fn until_partials_hold(device: &Device, bytes: u64) {
    let deadline = Instant::now() + SOON;
    let held = || -> u64 {
        let files = std::fs::read_dir(device.home.partials_dir()).unwrap().flatten();
        files.filter_map(|file| Some(file.metadata().ok()?.blocks() * 512)).sum()
    };
    while held() < bytes {
        assert!(Instant::now() < deadline, "only {} bytes\n{}", held(), tell(&[device]));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_asset_comes_from_all_that_hold_it() {
    let size = 64 * MIB;
    let [a, b, mut c] = two_hold_what_the_third_missed(size).await;
    c.up().await;
    all_in_sync(&[&a, &b, &c], 2).await;
    // The status counts bytes with a delay.
    quiet(&[&a, &b, &c]).await;
    let (of_a, of_b) = (c.sees(&a).received_bytes, c.sees(&b).received_bytes);
    // The count begins anew when a connection replaces another, as after two that dialled each other:
    // what one did not give, the other gave.
    assert!(of_a.max(of_b) <= (size - MIB) as u64, "{of_a} and {of_b}");
    assert!((of_a + of_b) * 100 <= size as u64 * 105, "{of_a} and {of_b}");
    let sent = a.sees(&c).sent_bytes + b.sees(&c).sent_bytes;
    assert!(sent * 100 <= size as u64 * 105, "{sent} sent");
    c.verify().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_several_devices_began_goes_on_from_one_of_them_after_a_restart() {
    let size = 128 * MIB;
    let [mut a, b, mut c] = two_hold_what_the_third_missed(size).await;
    c.up().await;
    let held = 24 * MIB as u64;
    until_partials_hold(&c, held).await;
    c.down().await;
    assert!(std::fs::read_dir(c.home.partials_dir()).unwrap().next().is_some(), "it was too late");
    a.down().await;
    c.up().await;
    all_in_sync(&[&b, &c], 1).await;
    let sent = b.sees(&c).sent_bytes;
    assert!(sent <= size as u64 - held + MIB as u64, "{sent} bytes were sent again or anew");
    c.verify().await;
}
