//! A headless Chromium, driven over WebDriver.
//!
//! The protocol is JSON over HTTP; what is used of it fits here, and saves the tests a client with its
//! dependencies.

#![allow(unreachable_pub, dead_code)]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

/// A page that takes longer hangs.
const DEADLINE: Duration = Duration::from_secs(60);

/// How often a condition is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The member by which WebDriver names elements.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// Keys, as WebDriver names them.
pub const TAB: &str = "\u{e004}";
pub const ENTER: &str = "\u{e007}";
pub const ARROW_RIGHT: &str = "\u{e014}";

/// A browser of its own, with one window; ends when dropped.
pub struct Browser {
    driver: Child,
    address: String,
    session: String,
    _profile: TempDir,
}

impl Browser {
    /// `None`, with a line that says so, where there is no Chromium.
    pub fn start() -> Option<Self> {
        let driver = Command::new("chromedriver")
            .arg("--port=0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let Ok(mut driver) = driver else {
            println!("not run: the page in a browser needs chromium and chromedriver");
            return None;
        };
        let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
        let port = lines.find_map(|line| {
            let line = line.ok()?;
            Some(
                line.strip_prefix("ChromeDriver was started successfully on port ")?
                    .trim_end_matches('.')
                    .to_owned(),
            )
        });
        let address = format!("127.0.0.1:{}", port.expect("chromedriver says its port"));
        let profile = tempfile::tempdir().unwrap();
        let mut browser = Self { driver, address, session: String::new(), _profile: profile };
        let args = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--window-size=1200,900",
            &format!("--user-data-dir={}", browser._profile.path().display()),
        ];
        let capabilities = json!({ "capabilities": { "alwaysMatch": {
            "goog:chromeOptions": { "args": args },
            "timeouts": { "script": 30_000, "pageLoad": 60_000 },
        } } });
        let begun = browser.post("/session", &capabilities);
        browser.session = format!("/session/{}", begun["sessionId"].as_str().unwrap());
        Some(browser)
    }

    fn request(&self, method: &str, path: &str, body: &str) -> Result<Value, Value> {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\nConnection: close\r\n\r\n{body}",
            self.address
        )
        .unwrap();
        // The connection stays open: the answer ends where its length says.
        let mut answer = BufReader::new(stream);
        let mut status = String::new();
        answer.read_line(&mut status).unwrap();
        let mut length = 0;
        loop {
            let mut line = String::new();
            answer.read_line(&mut line).unwrap();
            let line = line.trim().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        answer.read_exact(&mut body).unwrap();
        let value = serde_json::from_slice::<Value>(&body).unwrap()["value"].clone();
        if status.starts_with("HTTP/1.1 200") { Ok(value) } else { Err(value) }
    }

    fn post(&self, path: &str, body: &Value) -> Value {
        let path = format!("{}{path}", self.session);
        self.request("POST", &path, &body.to_string())
            .unwrap_or_else(|error| panic!("{path}: {}", error["message"]))
    }

    fn get(&self, path: &str) -> Value {
        self.request("GET", &format!("{}{path}", self.session), "").unwrap()
    }

    /// Opens a page.
    pub fn go(&self, url: &str) {
        self.post("/url", &json!({ "url": url }));
    }

    /// Where the browser is.
    pub fn url(&self) -> String {
        self.get("/url").as_str().unwrap().to_owned()
    }

    /// What a function of the page returns.
    pub fn script(&self, body: &str, args: &[Value]) -> Value {
        self.post("/execute/sync", &json!({ "script": body, "args": args }))
    }

    /// Returns what `look` finds, as soon as it finds something.
    pub fn wait<T>(&self, what: &str, look: impl Fn(&Self) -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            if let Some(found) = look(self) {
                return found;
            }
            if start.elapsed() > DEADLINE {
                let body = self.script("return document.body.innerText", &[]);
                panic!("{what}: never; at {} there is: {}", self.url(), body.as_str().unwrap());
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Waits for an element, and names it.
    pub fn find(&self, css: &str) -> String {
        self.wait(css, |browser| browser.find_now(css))
    }

    fn find_now(&self, css: &str) -> Option<String> {
        let query = json!({ "using": "css selector", "value": css }).to_string();
        let found = self.request("POST", &format!("{}/element", self.session), &query).ok()?;
        Some(found[ELEMENT].as_str()?.to_owned())
    }

    /// Clicks an element as soon as it is there and can be clicked.
    pub fn click(&self, css: &str) {
        self.wait(&format!("a click on {css}"), |browser| {
            let element = browser.find_now(css)?;
            let path = format!("{}/element/{element}/click", browser.session);
            browser.request("POST", &path, "{}").ok()
        });
    }

    /// Types into an element.
    pub fn type_into(&self, css: &str, text: &str) {
        let element = self.find(css);
        self.post(&format!("/element/{element}/value"), &json!({ "text": text }));
    }

    /// The text of an element, once it is not empty.
    pub fn text(&self, css: &str) -> String {
        self.wait(&format!("the text of {css}"), |browser| {
            let text = browser.script(
                "return document.querySelector(arguments[0])?.innerText ?? ''",
                &[json!(css)],
            );
            Some(text.as_str()?.to_owned()).filter(|text| !text.is_empty())
        })
    }

    /// Waits until the page's text holds this.
    pub fn wait_for_text(&self, text: &str) {
        self.wait(text, |browser| {
            let body = browser.script("return document.body.innerText", &[]);
            body.as_str()?.contains(text).then_some(())
        });
    }

    /// Presses keys, one after the other, wherever the focus is.
    pub fn press(&self, keys: &str) {
        let actions: Vec<Value> = keys
            .chars()
            .flat_map(|key| {
                ["keyDown", "keyUp"].map(|kind| json!({ "type": kind, "value": key.to_string() }))
            })
            .collect();
        self.post(
            "/actions",
            &json!({ "actions": [{ "type": "key", "id": "keys", "actions": actions }] }),
        );
    }

    /// Gives the window a size.
    pub fn resize(&self, width: u32, height: u32) {
        let metrics =
            json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.command("Emulation.setDeviceMetricsOverride", &metrics);
    }

    /// Has pages shown in this colour scheme: `light` or `dark`.
    pub fn prefer(&self, scheme: &str) {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.command("Emulation.setEmulatedMedia", &json!({ "features": features }));
    }

    /// A command of Chromium's own protocol.
    fn command(&self, command: &str, parameters: &Value) {
        self.post("/goog/cdp/execute", &json!({ "cmd": command, "params": parameters }));
    }

    /// Writes a picture of the window, this many pixels wide.
    pub fn picture(&self, file: &Path) {
        let picture = self.get("/screenshot");
        let picture = data_encoding::BASE64.decode(picture.as_str().unwrap().as_bytes());
        std::fs::write(file, picture.unwrap()).unwrap();
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if !self.session.is_empty() {
            let _ = self.request("DELETE", &self.session, "");
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
