//! How the views weigh, whether they fit, and whether `axe-core` finds a fault in them. `npm install
//! --no-save --prefix target/axe axe-core` brings it.

use super::*;

const AXE: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/target/axe/node_modules/axe-core/axe.min.js");

/// The most bytes of a first view, with its style and script.
const FIRST_VIEW_BYTES_MAX: usize = 100_000;

/// An agent with assets and a second device, and the paths of all its views.
fn with_views() -> (Agent, Agent, Vec<String>) {
    let [desk, phone] = [(); 2].map(|()| Agent::start());
    for agent in [&desk, &phone] {
        agent.command(&["rename", "laptop"]).assert().success();
    }
    let mut hash = String::new();
    for name in ["über uns.txt", "صورة.txt", "写真.txt", "תמונה.txt"] {
        hash = add(&desk, name, "text/plain", name);
        desk.command(&["tag", &hash, "+家族 & Friends"]).assert().success();
    }
    let ticket = desk.json(&["ticket", "--no-wait"])[0]["ticket"].as_str().unwrap().to_owned();
    phone.command(&["pair", &ticket]).assert().success();
    let other = desk.json(&["status"])[0]["peers"][0]["node_id"].as_str().unwrap().to_owned();
    let paths = [
        "/",
        "/devices",
        "/browse",
        "/browse?view=list",
        "/browse?q=nothing",
        "/browse?in=trash",
        "/folders",
        "/health",
        "/activity",
        "/open?code=0",
        &format!("/devices/{other}/remove"),
        &format!("/asset/{hash}"),
        "/asset/00",
    ];
    let paths = paths.map(str::to_owned).into();
    (desk, phone, paths)
}

#[test]
fn views_are_light_fit_every_width_and_tell_devices_of_one_name_apart() {
    let _one = ONE.lock();
    let (desk, _phone, paths) = with_views();
    let cookie = cookie(&desk);
    let length = |path: &str| {
        let (_, answer) = raw(&desk, &format!("GET {path} HTTP/1.1\r\nCookie: {cookie}"));
        answer.split_once("\r\n\r\n").unwrap().1.len()
    };
    let shared = length("/page.css") + length("/page.js") + length("/icon.svg");
    for path in &paths {
        assert!(length(path) + shared < FIRST_VIEW_BYTES_MAX, "{path}: {}", length(path) + shared);
    }
    let (_, health) = raw(&desk, &format!("GET /health HTTP/1.1\r\nCookie: {cookie}"));
    let node_id = desk.json(&["status"])[0]["device"]["node_id"].as_str().unwrap().to_owned();
    assert!(health.contains(&format!("laptop ({})", &node_id[..10])), "{health}");
    let Some(browser) = Browser::start() else { return };
    sign_in(&browser, &desk);
    for width in [390, 820, 1440] {
        browser.resize(width, 900);
        for path in &paths {
            browser.go(&format!("{}{path}", api(&desk)));
            browser.find("main h1");
            let over = browser.script(
                "return document.documentElement.scrollWidth - document.documentElement.clientWidth",
                &[],
            );
            assert!(over.as_i64().unwrap() <= 0, "{path} at {width}: {over} too wide");
        }
    }
}

#[test]
fn axe_finds_no_fault_in_any_view() {
    let _one = ONE.lock();
    let Ok(axe) = std::fs::read_to_string(AXE) else {
        return println!("not run: there is no {AXE}");
    };
    let Some(browser) = Browser::start() else { return };
    let (desk, _phone, paths) = with_views();
    sign_in(&browser, &desk);
    for scheme in ["light", "dark"] {
        browser.prefer(scheme);
        for path in &paths {
            browser.go(&format!("{}{path}", api(&desk)));
            browser.find("main h1");
            let found = browser.script(
                &format!(
                    "{axe}; return axe.run({{ resultTypes: ['violations'] }}).then(found =>
                     found.violations.map(one => [one.id, one.nodes.map(node => node.html)]))"
                ),
                &[],
            );
            assert_eq!(found, json!([]), "{path}, {scheme}");
        }
    }
}
