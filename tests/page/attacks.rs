//! What strangers, other pages and hostile contents try.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use image::{DynamicImage, ImageFormat};

use super::*;

#[test]
fn a_cookie_that_somebody_planted_before_the_sign_in_is_never_adopted() {
    let agent = Agent::start();
    let name = cookie(&agent).split('=').next().unwrap().to_owned();
    let planted = format!("{name}={}", "0".repeat(64));
    let path = link(&agent).strip_prefix(&api(&agent)).unwrap().to_owned();
    let (status, answer) = raw(&agent, &format!("GET {path} HTTP/1.1\r\nCookie: {planted}"));
    assert_eq!(status, 200);
    let set = header(&answer, "set-cookie");
    assert!(!set.contains(&planted), "{set}");
    assert_eq!(raw(&agent, &format!("GET / HTTP/1.1\r\nCookie: {planted}")).0, 401);
    let own = set.split(';').next().unwrap();
    assert_eq!(raw(&agent, &format!("GET / HTTP/1.1\r\nCookie: {own}")).0, 200);
    let both = format!("{planted}; {own}");
    assert_eq!(raw(&agent, &format!("GET / HTTP/1.1\r\nCookie: {both}")).0, 401);
}

#[test]
fn a_thousand_idle_connections_and_slow_readers_and_writers_keep_nobody_out() {
    let agent = Agent::start();
    let cookie = cookie(&agent);
    let big = add(&agent, "big.bin", "application/octet-stream", &"x".repeat(8_000_000));
    let host = host(&agent);
    let connect = || TcpStream::connect(&host);
    let idle: Vec<TcpStream> = (0..1000).filter_map(|_| connect().ok()).collect();
    assert!(idle.len() > 900, "{}", idle.len());
    // Writers whose header never ends, and readers that take no byte of what they asked for.
    let mut slow: Vec<TcpStream> = (0..20).filter_map(|_| connect().ok()).collect();
    for stream in &mut slow {
        let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: ");
    }
    let mut readers: Vec<TcpStream> = (0..20).filter_map(|_| connect().ok()).collect();
    for stream in &mut readers {
        let head = format!("GET /file/{big} HTTP/1.1\r\nHost: {host}\r\nCookie: {cookie}\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
    }
    for path in ["/", "/devices", "/browse", "/health"] {
        let (status, _) = raw(&agent, &format!("GET {path} HTTP/1.1\r\nCookie: {cookie}"));
        assert_eq!(status, 200, "{path}");
    }
    // What never becomes a request is closed.
    let mut one = slow.pop().unwrap();
    one.set_read_timeout(Some(agent::DEADLINE)).unwrap();
    let ended = one.read_to_end(&mut Vec::new());
    assert!(
        ended.is_ok()
            || ended.is_err_and(|error| { error.kind() == std::io::ErrorKind::ConnectionReset })
    );
}

#[test]
fn hostile_pictures_of_every_format_cost_a_placeholder_and_never_the_agent() {
    let agent = Agent::start();
    let cookie = cookie(&agent);
    let folder = tempfile::tempdir().unwrap();
    let formats = [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::Gif, ImageFormat::WebP];
    let thumbnail = |name: &str, bytes: &[u8]| {
        let file = folder.path().join(name);
        std::fs::write(&file, bytes).unwrap();
        let added = agent.json(&["add", file.to_str().unwrap()]);
        let hash = added[0]["hash"].as_str().unwrap().to_owned();
        let (status, answer) =
            raw(&agent, &format!("GET /thumbnail/{hash} HTTP/1.1\r\nCookie: {cookie}"));
        assert_eq!(status, 200, "{name}");
        header(&answer, "content-type")
    };
    for format in formats {
        let mut bytes = std::io::Cursor::new(Vec::new());
        let picture = image::RgbImage::from_fn(64, 64, |x, y| image::Rgb([x as u8, y as u8, 1]));
        DynamicImage::from(picture).write_to(&mut bytes, format).unwrap();
        let whole = bytes.into_inner();
        let extension = format.extensions_str()[0];
        assert_eq!(thumbnail(&format!("whole.{extension}"), &whole), "image/jpeg", "{format:?}");
        let cut = thumbnail(&format!("cut.{extension}"), &whole[..24]);
        assert_eq!(cut, "image/svg+xml", "{format:?}");
        // A size that no memory holds, where the format has it.
        let mut bomb = whole.clone();
        match format {
            ImageFormat::Png => bomb[16..24].fill(0x7f),
            ImageFormat::Gif => bomb[6..10].fill(0xff),
            ImageFormat::WebP => bomb[20..30].fill(0xff),
            _ => {
                let frame = bomb.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
                bomb[frame + 5..frame + 9].fill(0xff);
            }
        }
        let kind = thumbnail(&format!("bomb.{extension}"), &bomb);
        assert!(["image/svg+xml", "image/jpeg"].contains(&kind.as_str()), "{format:?}: {kind}");
        // Bytes that are wrong all over.
        for step in [3, 7, 29] {
            let mut torn = whole.clone();
            torn.iter_mut().skip(12).step_by(step).for_each(|byte| *byte ^= 0x5a);
            thumbnail(&format!("torn-{step}.{extension}"), &torn);
        }
    }
    assert_eq!(raw(&agent, &format!("GET / HTTP/1.1\r\nCookie: {cookie}")).0, 200);
    assert!(!agent.log().contains("panicked"), "{}", agent.log());
}

#[test]
fn an_error_is_a_page_that_says_what_to_do() {
    let agent = Agent::start();
    let cookie = cookie(&agent);
    for path in ["/asset/00", "/file/00", "/asset/../x", "/browse?since=yesterday"] {
        let (status, answer) = raw(&agent, &format!("GET {path} HTTP/1.1\r\nCookie: {cookie}"));
        assert!((400..500).contains(&status), "{path}: {status}");
        if path != "/asset/../x" {
            assert!(answer.contains("<h1>") && answer.contains("Go back"), "{path}: {answer}");
        }
    }
}
