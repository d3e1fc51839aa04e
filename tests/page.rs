//! The page in a real browser, and what it refuses. Without Chromium the browser's part says in one line
//! that it was not run.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

#[path = "common/agent.rs"]
mod agent;
#[path = "page/attacks.rs"]
mod attacks;
#[path = "common/browser.rs"]
mod browser;
#[path = "page/elsewhere.rs"]
mod elsewhere;
#[path = "page/looks.rs"]
mod looks;

use std::sync::Mutex;

use serde_json::{Value, json};

use agent::Agent;
use browser::{ARROW_RIGHT, Browser, ENTER, TAB};

/// One browser at a time: each takes a processor.
static ONE: Mutex<()> = Mutex::new(());

fn link(agent: &Agent) -> String {
    agent.json(&["open", "--no-browser"])[0]["url"].as_str().unwrap().to_owned()
}

fn api(agent: &Agent) -> String {
    agent.ready()["api"].as_str().unwrap().to_owned()
}

fn host(agent: &Agent) -> String {
    api(agent).strip_prefix("http://").unwrap().to_owned()
}

fn sign_in(browser: &Browser, agent: &Agent) {
    browser.go(&link(agent));
    browser.wait("the overview", |browser| {
        (browser.url() == format!("{}/", api(agent))).then_some(())
    });
    browser.find("#answer");
}

/// A request as another program would send it.
fn raw(agent: &Agent, head: &str) -> (u16, String) {
    agent.http(&format!("{head}\r\nHost: {}\r\nConnection: close\r\n\r\n", host(agent)))
}

/// The cookie of a fresh session.
fn cookie(agent: &Agent) -> String {
    let path = link(agent).strip_prefix(&api(agent)).unwrap().to_owned();
    let (status, answer) = raw(agent, &format!("GET {path} HTTP/1.1"));
    assert_eq!(status, 200, "{answer}");
    header(&answer, "set-cookie").split(';').next().unwrap().to_owned()
}

fn header(answer: &str, name: &str) -> String {
    let lines = answer.split("\r\n\r\n").next().unwrap().lines();
    let value =
        lines.filter_map(|line| line.split_once(": ")).find(|(n, _)| n.eq_ignore_ascii_case(name));
    value.map(|(_, value)| value.to_owned()).unwrap_or_default()
}

/// The token of the session's forms.
fn token(agent: &Agent, cookie: &str) -> String {
    let (_, page) = raw(agent, &format!("GET /health HTTP/1.1\r\nCookie: {cookie}"));
    let start = page.find("name=\"csrf\" content=\"").unwrap() + 21;
    page[start..start + 64].to_owned()
}

fn form(agent: &Agent, path: &str, cookie: &str, origin: &str, body: &str) -> (u16, String) {
    let length = body.len();
    agent.http(&format!(
        "POST {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nCookie: {cookie}\r\n\
         Origin: {origin}\r\nContent-Type: application/x-www-form-urlencoded\r\n\
         Content-Length: {length}\r\n\r\n{body}",
        host(agent)
    ))
}

fn add(agent: &Agent, name: &str, media_type: &str, content: &str) -> String {
    let query: String = name.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let (status, answer) = agent.http(&format!(
        "POST /assets?name={query} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nAuthorization: Bearer {}\r\n\
         Content-Type: {media_type}\r\nContent-Length: {}\r\n\r\n{content}",
        host(agent),
        agent.token(),
        content.len()
    ));
    assert_eq!(status, 201, "{answer}");
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    serde_json::from_str::<Value>(body).unwrap()["hash"].as_str().unwrap().to_owned()
}

#[test]
fn only_a_browser_with_a_link_of_this_user_gets_in_and_only_until_it_is_put_out() {
    let agent = Agent::start();
    for path in ["/", "/devices", "/browse", "/live", "/file/x", "/thumbnail/x"] {
        let (status, answer) = raw(&agent, &format!("GET {path} HTTP/1.1"));
        assert_eq!(status, 401, "{path}");
        assert!(answer.contains("can-sync open"), "{path} says what to do");
    }
    for wrong in ["/open", "/open?code=", "/open?code=00"] {
        assert_eq!(raw(&agent, &format!("GET {wrong} HTTP/1.1")).0, 401, "{wrong}");
    }
    // A code is good once.
    let path = link(&agent).strip_prefix(&api(&agent)).unwrap().to_owned();
    let (status, answer) = raw(&agent, &format!("GET {path} HTTP/1.1"));
    assert_eq!(status, 200);
    let set = header(&answer, "set-cookie");
    assert!(set.contains("HttpOnly") && set.contains("SameSite=Strict"), "{set}");
    assert!(header(&answer, "refresh").ends_with("url=/"), "the code leaves the URL");
    assert_eq!(raw(&agent, &format!("GET {path} HTTP/1.1")).0, 401);
    let code = path.split('=').next_back().unwrap();
    assert!(!agent.log().contains(code), "no code in the log");

    let cookie = set.split(';').next().unwrap();
    let (status, answer) = raw(&agent, &format!("GET / HTTP/1.1\r\nCookie: {cookie}"));
    assert_eq!(status, 200);
    let policy = header(&answer, "content-security-policy");
    assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"));
    assert!(!policy.contains("unsafe"), "{policy}");
    assert_eq!(header(&answer, "x-content-type-options"), "nosniff");
    assert_eq!(header(&answer, "cache-control"), "no-store");
    // The cookie is for the page: the API still wants its token.
    assert_eq!(raw(&agent, &format!("GET /v1/status HTTP/1.1\r\nCookie: {cookie}")).0, 401);

    // A stolen cookie is worth nothing after this.
    assert_eq!(agent.json(&["open", "--revoke"])[0]["sessions"], 1);
    assert_eq!(raw(&agent, &format!("GET / HTTP/1.1\r\nCookie: {cookie}")).0, 401);
}

#[test]
fn requests_of_other_pages_and_other_hosts_change_and_show_nothing() {
    let agent = Agent::start();
    let cookie = cookie(&agent);
    let token = token(&agent, &cookie);
    let own = format!("http://{}", host(&agent));
    let body = format!("csrf={token}&name=renamed");
    for origin in ["null", "http://evil.example", "http://127.0.0.1:1", "http://localhost"] {
        assert_eq!(form(&agent, "/devices/rename", &cookie, origin, &body).0, 403, "{origin}");
    }
    for wrong in ["name=renamed", "csrf=&name=renamed", "csrf=00&name=renamed"] {
        assert_eq!(form(&agent, "/devices/rename", &cookie, &own, wrong).0, 403, "{wrong}");
    }
    let planted = cookie.split('=').next().unwrap().to_owned() + "=0123";
    assert_eq!(form(&agent, "/devices/rename", &planted, &own, &body).0, 401);
    let rebound = format!(
        "GET / HTTP/1.1\r\nHost: evil.example\r\nCookie: {cookie}\r\nConnection: close\r\n\r\n"
    );
    assert_eq!(agent.http(&rebound).0, 403);
    let image = format!(
        "GET /thumbnail/x HTTP/1.1\r\nCookie: {cookie}\r\nSec-Fetch-Site: same-site\r\nSec-Fetch-Dest: image\r\nSec-Fetch-Mode: no-cors"
    );
    assert_eq!(raw(&agent, &image).0, 403);
    let long = "x".repeat(100_000);
    assert_eq!(form(&agent, "/devices/rename", &cookie, &own, &long).0, 413);
    let (status, _) = form(&agent, "/devices/rename", &cookie, &own, &body);
    assert_eq!(status, 303, "the page's own form does it");
    assert_eq!(agent.json(&["status"])[0]["device"]["name"], "renamed");
}

#[test]
fn contents_never_run_and_never_leave_their_place() {
    let agent = Agent::start();
    let cookie = cookie(&agent);
    let get = |path: &str| raw(&agent, &format!("GET {path} HTTP/1.1\r\nCookie: {cookie}"));
    let html = "<script>document.title='x'</script>";
    for (name, kind) in
        [("a.html", "text/html"), ("a.svg", "image/svg+xml"), ("a.txt", "text/plain")]
    {
        let hash = add(&agent, name, kind, &format!("{html}{name}"));
        let (status, answer) = get(&format!("/file/{hash}"));
        assert_eq!(status, 200, "{name}");
        assert!(header(&answer, "content-disposition").starts_with("attachment"), "{name}");
        assert!(header(&answer, "content-security-policy").starts_with("sandbox"), "{name}");
        assert_eq!(header(&answer, "x-content-type-options"), "nosniff");
    }
    // A lie about the type makes no document of it.
    let hash = add(&agent, "lie.png", "image/png", html);
    let (_, answer) = get(&format!("/file/{hash}"));
    assert_eq!(header(&answer, "content-type"), "image/png");
    assert!(header(&answer, "content-security-policy").starts_with("sandbox"));
    let (_, answer) = get(&format!("/thumbnail/{hash}"));
    assert_eq!(header(&answer, "content-type"), "image/svg+xml", "a placeholder of our own");
    let (_, answer) = get(&format!("/file/{hash}?save"));
    assert!(header(&answer, "content-disposition").starts_with("attachment"));
    for path in ["/file/..", "/file/%2e%2e%2fapi-token", "/file/../api-token", "/thumbnail/%00"] {
        let (status, answer) = get(path);
        assert!((400..500).contains(&status), "{path}");
        assert!(!answer.contains(&agent.token()), "{path}");
    }
}

#[test]
fn a_picture_has_a_thumbnail_that_is_made_once_and_a_broken_one_costs_a_placeholder() {
    let agent = Agent::start();
    let cookie = cookie(&agent);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("wide.png");
    image::RgbImage::from_fn(900, 300, |x, y| image::Rgb([x as u8, y as u8, 99]))
        .save(&file)
        .unwrap();
    let add = |file: &std::path::Path| {
        let added = agent.json(&["add", file.to_str().unwrap()]);
        added[0]["hash"].as_str().unwrap().to_owned()
    };
    let thumbnail = |hash: &str| {
        let (status, answer) =
            raw(&agent, &format!("GET /thumbnail/{hash} HTTP/1.1\r\nCookie: {cookie}"));
        assert_eq!(status, 200);
        header(&answer, "content-type")
    };
    let hash = add(&file);
    assert_eq!(thumbnail(&hash), "image/jpeg");
    let kept = agent.home().join("thumbnails").join(&hash[..2]).join(&hash[2..]);
    let small = image::load_from_memory(&std::fs::read(&kept).unwrap()).unwrap();
    assert_eq!((small.width(), small.height()), (384, 128));
    let made = std::fs::metadata(&kept).unwrap().modified().unwrap();
    assert_eq!(thumbnail(&hash), "image/jpeg");
    assert_eq!(std::fs::metadata(&kept).unwrap().modified().unwrap(), made);

    let mut bytes = std::fs::read(&file).unwrap();
    bytes.truncate(200);
    std::fs::write(&file, bytes).unwrap();
    let broken = add(&file);
    assert_eq!(thumbnail(&broken), "image/svg+xml");
    let kept = agent.home().join("thumbnails").join(&broken[..2]).join(&broken[2..]);
    assert_eq!(std::fs::metadata(kept).unwrap().len(), 0, "it is not tried again");
    let beside = walkdir::WalkDir::new(agent.home().join("thumbnails"));
    let files = beside.into_iter().flatten().filter(|entry| entry.file_type().is_file()).count();
    assert_eq!(files, 2, "nothing else is left");
}

#[test]
fn two_agents_pair_by_clicking_and_people_compare_the_digits_on_both() {
    let _one = ONE.lock();
    let [desk, phone] = [(); 2].map(|()| Agent::start());
    let Some(browser) = Browser::start() else { return };
    let Some(other) = Browser::start() else { return };
    sign_in(&browser, &desk);
    sign_in(&other, &phone);
    browser.wait_for_text("No other device yet");
    browser.click("a[href='/devices']");
    browser.click("form[action='/devices/invite'] button");
    browser.find("svg.qr");
    let ticket = browser.script("return document.querySelector('#invitation').value", &[]);

    other.go(&format!("{}/devices", api(&phone)));
    other.type_into("#ticket", ticket.as_str().unwrap());
    other.click("form[action='/devices/join'] button");
    let digits = [&browser, &other].map(|browser| browser.text(".pairing .digits"));
    assert_eq!(digits[0], digits[1]);
    assert_eq!(digits[0].chars().filter(char::is_ascii_digit).count(), 12, "{}", digits[0]);
    assert_eq!(desk.json(&["status"])[0]["peers"], json!([]), "nothing before both confirmed");
    for browser in [&browser, &other] {
        browser.click(".pairing form:first-of-type button");
    }
    for browser in [&browser, &other] {
        browser.wait_for_text("is paired with this device");
        browser.find("#list .dot.on");
    }
}

#[test]
fn dropped_files_are_added_tagged_and_found_by_their_tag() {
    let _one = ONE.lock();
    let agent = Agent::start();
    let Some(browser) = Browser::start() else { return };
    sign_in(&browser, &agent);
    browser.go(&format!("{}/browse", api(&agent)));
    browser.wait_for_text("Nothing here yet");
    browser.script(
        "const files = new DataTransfer();
         for (const name of ['über uns.txt', 'b.txt', 'c.txt'])
             files.items.add(new File(['content of ' + name], name, { type: 'text/plain' }));
         document.body.dispatchEvent(new DragEvent('drop', { dataTransfer: files, bubbles: true, cancelable: true }));",
        &[],
    );
    browser.wait_for_text("3 files were added.");
    browser.click("#uploads a");
    browser.wait_for_text("über uns.txt");
    let href = browser.script(
        "return [...document.querySelectorAll('.tile')].find(tile => tile.innerText.includes('über')).pathname",
        &[],
    );
    browser.go(&format!("{}{}", api(&agent), href.as_str().unwrap()));
    browser.type_into("#add", "Familie & Freunde");
    browser.click("form:has(#add) button");
    browser.wait_for_text("Tagged");
    browser.click("a.tag");
    browser.wait("one tile", |browser| {
        let tiles = browser.script("return document.querySelectorAll('.tile').length", &[]);
        (tiles == 1 && browser.url().contains("tag=")).then_some(())
    });
    assert!(browser.text(".tile").contains("über uns.txt"));
    let found = agent.json(&["ls", "--tag", "Familie & Freunde"]);
    assert_eq!(found[0]["name"], "über uns.txt");
}

#[test]
fn names_tags_and_descriptions_with_markup_are_text_in_every_view() {
    let _one = ONE.lock();
    let agent = Agent::start();
    let attacks = [
        "<img src=x onerror=window.pwned=1>",
        "\"><script>window.pwned=1</script>",
        "javascript:window.pwned=1",
        "{{constructor.constructor('window.pwned=1')()}}",
        "'-window.pwned=1-'",
        "</title></textarea></style><svg onload=window.pwned=1>",
        "\u{202e}gpj.exe",
    ];
    let mut hashes = Vec::new();
    for (at, attack) in attacks.iter().enumerate() {
        // A name holds no slash; tags and descriptions do.
        let hash = add(&agent, &attack.replace('/', "|"), "image/png", &at.to_string());
        agent.command(&["tag", &hash, &format!("+{attack}")]).assert().success();
        agent.command(&["describe", &hash, attack]).assert().success();
        hashes.push(hash);
    }
    agent.command(&["rename", "<b>desk</b><script>window.pwned=1</script>"]).assert().success();
    let Some(browser) = Browser::start() else { return };
    sign_in(&browser, &agent);
    let mut paths: Vec<String> =
        ["/", "/devices", "/browse", "/browse?view=list", "/folders", "/health", "/activity"]
            .map(str::to_owned)
            .into();
    paths.extend(hashes.iter().map(|hash| format!("/asset/{hash}")));
    paths.push("/browse?q=%22%3E%3Cscript%3Ewindow.pwned%3D1%3C%2Fscript%3E&tag=%3Csvg%20onload%3Dwindow.pwned%3D1%3E".into());
    for path in paths {
        browser.go(&format!("{}{path}", api(&agent)));
        browser.find("main h1");
        let seen = browser.script(
            "return [window.pwned ?? null, document.scripts.length,
                     document.querySelectorAll('main script, main b, [onerror], [onload], bdi *').length,
                     [...document.querySelectorAll('a')].filter(a => a.protocol === 'javascript:').length]",
            &[],
        );
        assert_eq!(seen, json!([null, 1, 0, 0]), "{path}");
    }
    let shown = browser.script("return fetch('/browse').then(answer => answer.text())", &[]);
    assert!(shown.as_str().unwrap().contains("&lt;img src=x onerror"), "it is there, as text");
}

#[test]
fn the_page_works_by_keyboard_alone() {
    let _one = ONE.lock();
    let agent = Agent::start();
    for at in 0..3 {
        add(&agent, &format!("{at}.txt"), "text/plain", &at.to_string());
    }
    let Some(browser) = Browser::start() else { return };
    sign_in(&browser, &agent);
    browser.go(&format!("{}/browse", api(&agent)));
    browser.find(".tile");
    let focus = |browser: &Browser| {
        let seen = browser.script(
            "const it = document.activeElement; return { at: it.id || it.className || it.innerText,
             ring: getComputedStyle(it).outlineStyle, order: document.querySelectorAll('[tabindex]:not([tabindex=\"-1\"]):not([tabindex=\"0\"])').length }",
            &[],
        );
        assert_eq!(seen["order"], 0, "the order is that of the page");
        seen
    };
    browser.press(TAB);
    assert_eq!(focus(&browser)["at"], "skip");
    browser.press(ENTER);
    let reached = |wanted: &str| {
        for _ in 0..40 {
            browser.press(TAB);
            let seen = focus(&browser);
            assert_ne!(seen["ring"], Value::from("none"), "{} shows its focus", seen["at"]);
            if seen["at"] == wanted {
                return;
            }
        }
        panic!("{wanted} is never reached");
    };
    reached("q");
    reached("tile");
    browser.press(ARROW_RIGHT);
    assert_eq!(focus(&browser)["at"], "tile");
    browser.press(ENTER);
    browser.wait("the second asset", |browser| browser.url().contains("/asset/").then_some(()));
    browser.find("#add");
    reached("add");
    browser.press("kept");
    browser.press(ENTER);
    browser.wait_for_text("Tagged “kept”.");
    assert_eq!(agent.json(&["ls", "--tag", "kept"])[0]["name"], "1.txt");
}

#[test]
fn alerts_stand_first_and_go_aside_when_somebody_has_seen_them() {
    let _one = ONE.lock();
    let agent = Agent::start();
    agent.output(&["config", "set", "alert_free_space", "1000P"]);
    let Some(browser) = Browser::start() else { return };
    sign_in(&browser, &agent);
    browser.find("#warnings form button");
    let text = browser.text("#warnings .said");
    assert!(text.contains("free"), "{text}");
    assert_eq!(agent.json(&["alerts"])[0]["acked_ms"], Value::Null);
    browser.click("#warnings form button");
    browser.wait_for_text("1 alert was seen and still stands");
    assert!(agent.json(&["alerts"])[0]["acked_ms"].is_u64());
    let left = browser.script("return document.querySelectorAll('#warnings form').length", &[]);
    assert_eq!(left, 0);
    // A page of another site cannot do it.
    let cookie = cookie(&agent);
    let body = format!("csrf={}&id=low-space", token(&agent, &cookie));
    assert_eq!(form(&agent, "/alerts/seen", &cookie, "http://evil.example", &body).0, 403);
}

#[test]
fn a_copy_is_deleted_here_only_when_others_have_proven_theirs_and_health_counts_copies() {
    let _one = ONE.lock();
    let [desk, phone] = [(); 2].map(|()| Agent::start());
    let alone = add(&desk, "alone.txt", "text/plain", "alone");
    let Some(browser) = Browser::start() else { return };
    sign_in(&browser, &desk);
    let ask = |hash: &str| {
        browser.go(&format!("{}/asset/{hash}", api(&desk)));
        browser.click("form[action$='/spare'] button");
    };
    ask(&alone);
    browser.wait_for_text("No: too few other devices have proven a copy.");
    assert_eq!(
        browser.script("return document.querySelectorAll('form[action$=\"/evict\"]').length", &[]),
        0
    );

    let ticket = desk.json(&["ticket", "--no-wait"])[0]["ticket"].as_str().unwrap().to_owned();
    phone.command(&["pair", &ticket]).assert().success();
    desk.command(&["copies", "1"]).assert().success();
    phone.command(&["fetch", &alone]).assert().success();
    desk.command(&["wait"]).assert().success();
    ask(&alone);
    browser.wait_for_text("has proven a copy.");
    browser.click("form[action$='/evict'] button");
    browser.wait_for_text("Its bytes are deleted on this device.");
    browser.wait_for_text("Fetch it again");
    browser.click("form[action$='/fetch'] button");
    desk.command(&["fetch", &alone]).assert().success();

    browser.go(&format!("{}/health", api(&desk)));
    browser.wait("the copies are counted", |browser| {
        browser.text("#copies-of").contains("Below the goal").then_some(())
    });
    assert!(browser.text("#copies-of").contains("This device wants everything."));
    assert!(browser.text("#scrub").len() > 10);
    assert!(browser.text("#damage").contains("No damage is known."));
}

#[test]
fn the_files_of_a_folder_are_looked_at_directory_by_directory() {
    let _one = ONE.lock();
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    let deep = directory.path().join("briefe & <b>mehr</b>".replace('/', "_"));
    std::fs::create_dir(&deep).unwrap();
    std::fs::write(deep.join("über uns.txt"), "one").unwrap();
    std::fs::write(directory.path().join("a.txt"), "two").unwrap();
    agent
        .command(&["folder", "add", directory.path().to_str().unwrap(), "--name", "home"])
        .assert()
        .success();
    let Some(browser) = Browser::start() else { return };
    sign_in(&browser, &agent);
    browser.go(&format!("{}/folders", api(&agent)));
    browser.click("#folders a.strong");
    browser.click("a[href$='/files']");
    browser.wait("both are listed", |browser| {
        browser.go(&browser.url());
        let text = browser.text("main");
        (text.contains("a.txt") && text.contains("briefe & <b>mehr<_b>/")).then_some(())
    });
    browser.click("main td a[href*='path=briefe']");
    browser.wait_for_text("über uns.txt");
    assert!(browser.text(".steps").contains("briefe & <b>mehr<_b>"));
    browser.click("main td a[href*='/history']");
    browser.wait_for_text("Now");
    assert!(browser.text("h1").contains("über uns.txt"));
}
