//! WebDAV as its clients see it: what it shows, what it takes in, and what it refuses. The check of the
//! protocol is `litmus`; without it one line says that it was not run.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

#[path = "common/agent.rs"]
mod agent;

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use agent::{Agent, until};
use serde_json::Value;
use tempfile::TempDir;

/// An agent with WebDAV, and a directory that is bound to the folder `home`.
struct Served {
    agent: Agent,
    dir: PathBuf,
    basic: String,
    password: String,
    _folder: TempDir,
}

impl Served {
    fn start(args: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let agent =
            Agent::serve(&folder.path().join("agent"), &[&["up", "--offline"], args].concat());
        let dir = folder.path().join("home");
        std::fs::create_dir(&dir).unwrap();
        agent.command(&["folder", "add", dir.to_str().unwrap()]).assert().success();
        let password = agent.json(&["dav", "password"])[0]["password"].as_str().unwrap().to_owned();
        let basic = data_encoding::BASE64.encode(format!("can-sync:{password}").as_bytes());
        Self { agent, dir, basic, password, _folder: folder }
    }

    fn host(&self) -> &str {
        self.agent.ready()["api"].as_str().unwrap().strip_prefix("http://").unwrap()
    }

    /// A request with the password.
    fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> (u16, String) {
        self.agent.http(&self.request(method, path, headers, body))
    }

    fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> String {
        let headers: String =
            headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        format!(
            "{method} /dav{path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\
             Authorization: Basic {}\r\nContent-Length: {}\r\n{headers}\r\n{body}",
            self.host(),
            self.basic,
            body.len()
        )
    }

    fn put(&self, path: &str, body: &str) -> u16 {
        self.ask("PUT", path, &[], body).0
    }

    /// What a `GET` gives.
    fn get(&self, path: &str) -> Option<String> {
        let (status, answer) = self.ask("GET", path, &[], "");
        (status == 200).then(|| answer.split_once("\r\n\r\n").unwrap().1.to_owned())
    }

    /// The paths that a directory lists, its own first.
    fn list(&self, path: &str) -> Vec<String> {
        let (status, answer) = self.ask("PROPFIND", path, &[("Depth", "1")], "");
        assert_eq!(status, 207, "{path}: {answer}");
        answer
            .split("<D:href>")
            .skip(1)
            .map(|rest| rest.split("</D:href>").next().unwrap().to_owned())
            .collect()
    }
}

fn header(answer: &str, name: &str) -> String {
    let lines = answer.split("\r\n\r\n").next().unwrap().lines();
    let mut pairs = lines.filter_map(|line| line.split_once(": "));
    let found = pairs.find(|(other, _)| other.eq_ignore_ascii_case(name));
    found.map(|(_, value)| value.to_owned()).unwrap_or_default()
}

#[test]
fn it_is_off_until_a_password_is_made_and_after_it_is_taken_away() {
    let agent = Agent::start();
    let host = agent.ready()["api"].as_str().unwrap().strip_prefix("http://").unwrap().to_owned();
    let ask = |credentials: &str| {
        agent.http(&format!(
            "PROPFIND /dav/ HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{credentials}\r\n"
        ))
    };
    assert_eq!(ask("").0, 404);
    assert_eq!(agent.json(&["dav"])[0]["is_on"], false);
    let made = agent.json(&["dav", "password"]);
    let password = made[0]["password"].as_str().unwrap();
    let basic = |password: &str| {
        let text = data_encoding::BASE64.encode(format!("can-sync:{password}").as_bytes());
        format!("Authorization: Basic {text}\r\n")
    };
    assert_eq!(ask(&basic(password)).0, 207);
    let (status, answer) = ask("");
    assert_eq!(status, 401);
    assert!(header(&answer, "www-authenticate").starts_with("Basic"), "{answer}");
    assert_eq!(ask(&basic("wrong")).0, 401);
    assert_eq!(ask(&format!("Authorization: Bearer {}\r\n", agent.token())).0, 401);
    // The password is WebDAV's alone, and not kept.
    let api = format!(
        "GET /v1/status HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{}\r\n",
        basic(password)
    );
    assert_eq!(agent.http(&api).0, 401);
    let kept = std::fs::read_to_string(agent.home().join("dav-password")).unwrap();
    assert!(!kept.contains(password) && !agent.log().contains(password));
    agent.command(&["dav", "off"]).assert().success();
    assert_eq!(ask(&basic(password)).0, 404);
}

#[test]
fn what_is_put_into_a_folder_is_in_its_directory_and_what_is_saved_there_is_listed() {
    let served = Served::start(&[]);
    assert_eq!(served.list("/"), ["/dav/", "/dav/by-date/", "/dav/by-tag/", "/dav/folders/"]);
    assert_eq!(served.list("/folders/"), ["/dav/folders/", "/dav/folders/home/"]);
    let name = "/folders/home/%C3%BCber%20uns.txt";
    assert_eq!(served.ask("PUT", name, &[("X-OC-Mtime", "1700000000")], "one").0, 201);
    let file = served.dir.join("über uns.txt");
    until("it is in the directory", || std::fs::read(&file).is_ok_and(|text| text == b"one"));
    let modified = std::fs::metadata(&file).unwrap().modified().unwrap();
    let seconds = modified.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert_eq!(seconds, 1_700_000_000);
    assert_eq!(served.put(name, "two"), 204);
    assert_eq!(served.get(name).unwrap(), "two");
    until("the new one too", || std::fs::read(&file).is_ok_and(|text| text == b"two"));

    std::fs::create_dir(served.dir.join("sub")).unwrap();
    std::fs::write(served.dir.join("sub/saved"), "three").unwrap();
    until("it is listed", || served.list("/folders/home/").iter().any(|at| at.ends_with("/sub/")));
    until("it is read", || served.get("/folders/home/sub/saved").as_deref() == Some("three"));

    // A program stays one when it is replaced and moved.
    let script = served.dir.join("run.sh");
    std::fs::write(&script, "#!/bin/sh").unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = "/folders/home/run.sh";
    until("the program is there", || served.get(path).as_deref() == Some("#!/bin/sh"));
    assert_eq!(served.put(path, "#!/bin/sh\n"), 204);
    let moved = ("Destination", "/dav/folders/home/go.sh");
    assert_eq!(served.ask("MOVE", path, &[moved], "").0, 201);
    until("it can be run", || {
        let found = std::fs::metadata(served.dir.join("go.sh"));
        found.is_ok_and(|found| found.permissions().mode() & 0o100 != 0)
    });

    // Nothing that a client does is for ever.
    assert_eq!(served.ask("DELETE", "/folders/home/sub/", &[], "").0, 204);
    assert_eq!(served.get("/folders/home/sub/saved"), None);
    assert_eq!(served.ask("DELETE", name, &[], "").0, 204);
    until("they are gone", || !file.exists() && !served.dir.join("sub").exists());
    let restored = served.agent.command(&["restore", "home:über uns.txt"]).assert().success();
    drop(restored);
    assert_eq!(served.get(name).unwrap(), "two");
    let versions = served.agent.json(&["history", "home:über uns.txt"]);
    assert!(
        versions.len() >= 3 || versions[0]["versions"].as_array().unwrap().len() >= 3,
        "{versions:?}"
    );
}

#[test]
fn directories_are_made_moved_and_copied_with_all_that_is_in_them() {
    let served = Served::start(&[]);
    let host = served.host().to_owned();
    let to = |path: &str| format!("http://{host}/dav{path}");
    assert_eq!(served.put("/folders/home/no/a", "a"), 409, "its directory is not there");
    assert_eq!(served.ask("MKCOL", "/folders/home/d", &[], "").0, 201);
    assert_eq!(served.ask("MKCOL", "/folders/home/d", &[], "").0, 405);
    assert_eq!(served.ask("MKCOL", "/folders/home/d/e", &[], "").0, 201);
    for name in ["a", "e/b", "e/c"] {
        assert_eq!(served.put(&format!("/folders/home/d/{name}"), name), 201);
    }
    let move_to =
        |from: &str, path: &str| served.ask("MOVE", from, &[("Destination", &to(path))], "").0;
    assert_eq!(move_to("/folders/home/d", "/folders/home/moved"), 201);
    assert_eq!(served.get("/folders/home/moved/e/b").unwrap(), "e/b");
    assert_eq!(served.get("/folders/home/d/a"), None);
    until("the directory follows", || {
        served.dir.join("moved/e/c").exists() && !served.dir.join("d").exists()
    });
    let copied = ("Destination", &*to("/folders/home/copied"));
    assert_eq!(served.ask("COPY", "/folders/home/moved", &[copied], "").0, 201);
    assert_eq!(served.get("/folders/home/copied/e/c").unwrap(), "e/c");
    // Onto what it is in, into itself, and onto the folder: nothing may be lost by it.
    for path in ["/folders/home/moved", "/folders/home/moved/e/x", "/folders/home", "/folders"] {
        assert_eq!(move_to("/folders/home/moved/e", path), 403, "{path}");
    }
    assert_eq!(served.get("/folders/home/moved/e/b").unwrap(), "e/b");
    // The last file goes, its directory stays.
    assert_eq!(served.ask("DELETE", "/folders/home/moved/a", &[], "").0, 204);
    assert_eq!(served.ask("DELETE", "/folders/home/moved/e/b", &[], "").0, 204);
    assert_eq!(served.ask("DELETE", "/folders/home/moved/e/c", &[], "").0, 204);
    assert_eq!(served.list("/folders/home/moved/e/"), ["/dav/folders/home/moved/e/"]);
    for path in ["/folders/home", "/folders", "/", "/by-date/2024"] {
        assert_eq!(served.ask("DELETE", path, &[], "").0, 403, "{path}");
    }
    assert_eq!(served.get("/folders/home/copied/a").unwrap(), "a");
}

#[test]
fn assets_are_listed_by_date_and_by_tag_and_cannot_be_changed_there() {
    let served = Served::start(&[]);
    let file = served.dir.parent().unwrap().join("photo.txt");
    let mut hashes = Vec::new();
    for text in ["one", "two"] {
        std::fs::write(&file, text).unwrap();
        let taken = std::time::UNIX_EPOCH + Duration::from_secs(1_715_000_000);
        std::fs::File::options().write(true).open(&file).unwrap().set_modified(taken).unwrap();
        let added = served.agent.json(&["add", file.to_str().unwrap()]);
        hashes.push(added[0]["hash"].as_str().unwrap().to_owned());
    }
    served.agent.command(&["tag", &hashes[0], "+Tom & Jerry/x"]).assert().success();
    until("both are listed", || served.list("/by-date/").len() == 2);
    assert_eq!(served.list("/by-date/"), ["/dav/by-date/", "/dav/by-date/2024/"]);
    assert_eq!(served.list("/by-date/2024/"), ["/dav/by-date/2024/", "/dav/by-date/2024/05/"]);
    until("two of one name", || served.list("/by-date/2024/05/").len() == 3);
    for (hash, text) in hashes.iter().zip(["one", "two"]) {
        let name = format!("/by-date/2024/05/photo-{}.txt", &hash[..10]);
        assert!(served.list("/by-date/2024/05/").contains(&format!("/dav{name}")), "{name}");
        assert_eq!(served.get(&name).unwrap(), text);
        assert_eq!(served.put(&name, "x"), 403);
        assert_eq!(served.ask("DELETE", &name, &[], "").0, 403);
    }
    let tags = served.list("/by-tag/");
    assert_eq!(tags.len(), 2, "{tags:?}");
    let tag = tags[1].strip_prefix("/dav").unwrap();
    assert_eq!(served.get(&format!("{tag}photo.txt")).unwrap(), "one");
    // Into a folder it may be copied.
    let copy = ("Destination", "/dav/folders/home/photo.txt");
    assert_eq!(served.ask("COPY", &format!("{tag}photo.txt"), &[copy], "").0, 201);
    until("it is in the directory", || {
        std::fs::read(served.dir.join("photo.txt")).is_ok_and(|text| text == b"one")
    });
    served.agent.command(&["trash", &hashes[0]]).assert().success();
    until("it is gone from there", || served.list("/by-tag/").len() == 1);
}

#[test]
fn contents_are_checked_come_in_parts_and_never_run_in_a_browser() {
    let served = Served::start(&[]);
    for (name, kind) in [
        ("a.html", "application/octet-stream"),
        ("a.svg", "application/octet-stream"),
        ("a.jpg", "image/jpeg"),
        ("a.js", "application/octet-stream"),
    ] {
        let path = format!("/folders/home/{name}");
        assert_eq!(served.put(&path, "<script>alert(1)</script>"), 201);
        let (status, answer) = served.ask("GET", &path, &[], "");
        assert_eq!(status, 200);
        assert_eq!(header(&answer, "content-type"), kind, "{name}");
        assert!(header(&answer, "content-disposition").starts_with("attachment"), "{name}");
        assert!(header(&answer, "content-security-policy").contains("sandbox"), "{name}");
        assert_eq!(header(&answer, "x-content-type-options"), "nosniff");
        assert!(header(&answer, "last-modified").ends_with("GMT"));
    }
    let path = "/folders/home/a.jpg";
    let (status, answer) = served.ask("GET", path, &[("Range", "bytes=8-12")], "");
    assert_eq!((status, answer.ends_with("alert")), (206, true), "{answer}");
    assert_eq!(header(&answer, "content-range"), "bytes 8-12/25");
    let (_, answer) = served.ask("HEAD", path, &[], "");
    let etag = header(&answer, "etag");
    assert_eq!(served.ask("GET", path, &[("If-None-Match", &etag)], "").0, 304);
    let (_, listed) = served.ask("PROPFIND", path, &[("Depth", "0")], "");
    assert!(listed.contains(etag.trim_matches('"')), "{listed}");
    // An overwrite of what the client has not seen is refused.
    assert_eq!(served.ask("PUT", path, &[("If-Match", "\"x\"")], "other").0, 412);
    assert_eq!(served.ask("PUT", path, &[("If-None-Match", "*")], "other").0, 412);
    assert_eq!(served.ask("PUT", path, &[("If-Match", &etag)], "other").0, 204);
    assert_eq!(served.ask("GET", "/folders/home/", &[], "").0, 405);
}

#[test]
fn an_upload_that_is_cut_off_leaves_nothing() {
    let served = Served::start(&[]);
    assert_eq!(served.put("/folders/home/a", "whole"), 201);
    for (path, length) in [("/folders/home/a", 100), ("/folders/home/new", 3_000_000)] {
        let request = served.request("PUT", path, &[], "");
        let request = request.replace("Content-Length: 0", &format!("Content-Length: {length}"));
        let mut stream = TcpStream::connect(served.host()).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        stream.write_all(&vec![b'x'; length / 2]).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
    }
    assert_eq!(served.get("/folders/home/a").unwrap(), "whole");
    assert_eq!(served.get("/folders/home/new"), None);
    let staged = served.agent.home();
    until("no part of it is left", || {
        let files = walkdir::WalkDir::new(staged).into_iter().flatten();
        !files.into_iter().any(|file| file.file_name().to_string_lossy().ends_with(".part"))
    });
    // Parts of a file cannot be written.
    let part = ("Content-Range", "bytes 1-2/5");
    assert_eq!(served.ask("PUT", "/folders/home/a", &[part], "xx").0, 416);
    assert_eq!(served.get("/folders/home/a").unwrap(), "whole");
}

#[test]
fn path_tricks_pages_of_browsers_and_hostile_bodies_are_refused() {
    let served = Served::start(&[]);
    std::fs::write(served.dir.parent().unwrap().join("secret"), "secret").unwrap();
    for path in [
        "/folders/home/../../secret",
        "/folders/home/..%2f..%2fsecret",
        "/folders/home/%2e%2e/%2e%2e/secret",
        "/folders/home/%00",
        "/folders/home/..%5csecret",
        "/../secret",
        "/folders/home//..//..//..//etc/passwd",
        "/folders/../../v1/status",
        "/folders/home/.can-sync-folder",
    ] {
        for method in ["GET", "PUT", "DELETE", "PROPFIND", "MKCOL"] {
            let (status, answer) = served.ask(method, path, &[], "");
            let is_name = path.contains("%5c") && matches!(method, "PUT" | "DELETE" | "MKCOL");
            assert!((400..500).contains(&status) || is_name, "{method} {path}: {status}");
            assert!(!answer.contains("secret") || is_name, "{method} {path}");
        }
    }
    assert_eq!(std::fs::read(served.dir.parent().unwrap().join("secret")).unwrap(), b"secret");
    for page in [("Origin", "http://evil.example"), ("Sec-Fetch-Site", "cross-site")] {
        assert_eq!(served.ask("GET", "/folders/home/", &[page], "").0, 403);
        assert_eq!(served.ask("PUT", "/folders/home/x", &[page], "x").0, 403);
    }
    let rebound = served.request("PROPFIND", "/", &[], "").replace(served.host(), "evil.example");
    assert_eq!(served.agent.http(&rebound).0, 403);
    let deep = format!("{}{}", "<a>".repeat(8_000), "</a>".repeat(8_000));
    let entities = "<?xml version=\"1.0\"?><!DOCTYPE x [<!ENTITY a \"aaaaaaaaaa\"><!ENTITY b \
                    \"&a;&a;&a;&a;&a;&a;&a;&a;\"><!ENTITY c \"&b;&b;&b;&b;&b;&b;&b;&b;\"><!ENTITY f \
                    SYSTEM \"file:///etc/passwd\">]><propfind xmlns=\"DAV:\"><prop><x>&c;&f;</x></prop>\
                    </propfind>";
    // The library reads beyond the end of such a header.
    for condition in ["(<urn:x", "([\"x", "(<urn:\"x>)", "<", "[", "(<a:b> [\"c\"]) (["] {
        let (status, _) = served.ask("PUT", "/folders/home/x", &[("If", condition)], "x");
        assert!((400..500).contains(&status), "{condition}: {status}");
    }
    assert_eq!(served.ask("PATCH", "/folders/home/x", &[], "x").0, 405);
    assert!(!served.agent.log().contains("panicked"));
    let long = "x".repeat(70_000);
    for body in [&*deep, "<", "<a", &long] {
        let (status, _) = served.ask("PROPFIND", "/folders/home/", &[], body);
        assert!((400..500).contains(&status), "{status}");
    }
    let (_, answer) = served.ask("PROPFIND", "/folders/home/", &[("Depth", "0")], entities);
    assert!(!answer.contains("root:"), "{answer}");
    let all = ("Depth", "infinity");
    assert_eq!(served.ask("PROPFIND", "/", &[all, ("X-Litmus", "1")], "").0, 501);
    assert_eq!(served.list("/folders/home/")[0], "/dav/folders/home/");
}

#[test]
fn the_network_reaches_it_with_tls_where_it_was_asked_for_and_a_thousand_idle_ones_block_nobody() {
    let served = Served::start(&["--dav-listen", "127.0.0.1:0", "--page-listen", "127.0.0.1:0"]);
    let view = &served.agent.json(&["dav"])[0];
    let address = view["listens"].as_str().unwrap().to_owned();
    let fingerprint = view["fingerprint"].as_str().unwrap().to_owned();
    let idle: Vec<TcpStream> =
        (0..1000).filter_map(|_| TcpStream::connect(&address).ok()).collect();
    assert!(idle.len() > 900, "{}", idle.len());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .no_proxy()
            .danger_accept_invalid_certs(true)
            .tls_info(true)
            .build()
            .unwrap();
        let dav = format!("https://{address}/dav/folders/home/a");
        let put = || client.put(&dav).body("a");
        assert_eq!(put().send().await.unwrap().status(), 401);
        let done = put().basic_auth("can-sync", Some(&served.password)).send().await.unwrap();
        assert_eq!(done.status(), 201);
        let info = done.extensions().get::<reqwest::tls::TlsInfo>().unwrap();
        let hash = ring::digest::digest(&ring::digest::SHA256, info.peer_certificate().unwrap());
        let pairs: Vec<String> = hash.as_ref().iter().map(|byte| format!("{byte:02X}")).collect();
        assert_eq!(pairs.join(":"), fingerprint);
        // The API is not there, and neither is the page.
        for path in ["v1/status", "", "assets"] {
            let answer = client.get(format!("https://{address}/{path}")).send().await.unwrap();
            assert!([401, 404].contains(&answer.status().as_u16()), "{path}: {}", answer.status());
        }
        // The page is at its own address, for who has a link.
        let link = &served.agent.json(&["open", "--no-browser"])[0]["network"];
        let url = link["url"].as_str().unwrap();
        assert!(url.ends_with(&fingerprint.replace(':', "").to_string()), "{url}");
        let (page, _) = url.split_once("/open").unwrap();
        assert_eq!(client.get(page).send().await.unwrap().status(), 401);
        let signed_in = client.get(url).send().await.unwrap();
        assert_eq!(signed_in.status(), 200);
        let cookie = signed_in.headers()["set-cookie"].to_str().unwrap().to_owned();
        assert!(cookie.contains("Secure") && cookie.contains("HttpOnly"), "{cookie}");
        let cookie = cookie.split(';').next().unwrap();
        let shown = client.get(page).header("cookie", cookie).send().await.unwrap();
        assert_eq!(shown.status(), 200);
        let api = client.get(format!("{page}/v1/status")).header("cookie", cookie);
        let refused = api.send().await.unwrap().status().as_u16();
        assert!([401, 404].contains(&refused), "{refused}");
    });
    drop(idle);
}

#[test]
fn without_being_asked_for_nothing_listens_beyond_loopback() {
    let agent = Agent::start();
    let table = Command::new("ss").args(["-Hltnp"]).output();
    let Ok(table) = table else { return println!("not run: there is no `ss`") };
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    let own: Vec<&str> =
        table.lines().filter(|line| line.contains(&format!("pid={},", agent.pid()))).collect();
    assert!(!own.is_empty(), "{table}");
    assert!(own.iter().all(|line| line.contains("127.0.0.1:")), "{own:?}");
    assert!(agent.json(&["dav"])[0]["listens"].is_null());
}

#[test]
fn litmus_finds_no_fault() {
    if Command::new("litmus").arg("--version").output().is_err() {
        return println!("not run: there is no `litmus` (Debian: apt-get install litmus)");
    }
    let served = Served::start(&[]);
    let url = format!("http://{}/dav/folders/home/", served.host());
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new("litmus")
        .args(["-k", &url, "can-sync", &served.password])
        .current_dir(folder.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let faults: Vec<&str> = text.lines().filter(|line| line.contains("FAIL")).collect();
    println!(
        "{}",
        text.lines().filter(|line| line.contains("summary")).collect::<Vec<_>>().join("\n")
    );
    assert!(faults.is_empty() && output.status.success(), "{faults:#?}\n{text}");
    assert!(!litmus_left(&served.dir), "it cleans up after itself");
}

fn litmus_left(dir: &Path) -> bool {
    std::fs::read_dir(dir.join("litmus")).is_ok_and(|mut entries| entries.next().is_some())
}

#[test]
fn the_password_outlives_a_restart_and_so_does_what_was_written() {
    let mut served = Served::start(&[]);
    assert_eq!(served.put("/folders/home/a", "kept"), 201);
    let home = served.agent.home().to_owned();
    served.agent.stop_with("-KILL");
    served.agent = Agent::start_in(&home);
    assert_eq!(served.get("/folders/home/a").unwrap(), "kept");
    let log: Vec<Value> = served.agent.json(&["folder", "ls"]);
    assert_eq!(log.len(), 1);
}
