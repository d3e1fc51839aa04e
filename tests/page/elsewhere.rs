//! Thumbnails of pictures whose bytes are on another device.

use super::*;

/// The type of the answer to a request for a thumbnail.
fn kind_of(agent: &Agent, cookie: &str, hash: &str) -> String {
    let (status, answer) =
        raw(agent, &format!("GET /thumbnail/{hash} HTTP/1.1\r\nCookie: {cookie}"));
    assert_eq!(status, 200);
    header(&answer, "content-type")
}

#[test]
fn a_picture_that_is_elsewhere_has_the_thumbnail_of_the_device_that_holds_it() {
    let [desk, phone] = [(); 2].map(|()| Agent::start());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("wide.png");
    image::RgbImage::from_fn(900, 300, |x, y| image::Rgb([x as u8, y as u8, 99]))
        .save(&file)
        .unwrap();
    let picture =
        desk.json(&["add", file.to_str().unwrap()])[0]["hash"].as_str().unwrap().to_owned();
    let text = add(&desk, "a.png", "image/png", "no picture");
    let ticket = desk.json(&["ticket", "--no-wait"])[0]["ticket"].as_str().unwrap().to_owned();
    phone.command(&["pair", &ticket]).assert().success();
    phone.command(&["copies", "1"]).assert().success();
    phone.command(&["fetch", &picture, &text]).assert().success();
    desk.command(&["wait"]).assert().success();
    phone.command(&["evict", &picture, &text]).assert().success();

    let cookie = cookie(&phone);
    let shelf = phone.home().join("thumbnails").join(&picture[..2]);
    assert!(!shelf.exists(), "none was made here");
    assert_eq!(kind_of(&phone, &cookie, &picture), "image/jpeg");
    let kept = shelf.join(format!("{}.peer", &picture[2..]));
    let small = image::load_from_memory(&std::fs::read(&kept).unwrap()).unwrap();
    assert_eq!((small.width(), small.height()), (384, 128));
    assert!(desk.home().join("thumbnails").join(&picture[..2]).join(&picture[2..]).exists());
    assert_eq!(kind_of(&phone, &cookie, &text), "image/svg+xml", "none can be made of it");

    // It is kept: the other device need not be there.
    drop(desk);
    assert_eq!(kind_of(&phone, &cookie, &picture), "image/jpeg");
    std::fs::remove_file(kept).unwrap();
    assert_eq!(kind_of(&phone, &cookie, &picture), "image/svg+xml");
}
