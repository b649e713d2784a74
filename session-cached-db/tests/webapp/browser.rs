//! Chromium, driven by `chromedriver`.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use fantoccini::elements::Element;
use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};

/// Maximum time to wait for a browser, which can be slow on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running `chromedriver`. It ends when this is dropped.
pub struct Driver {
    process: Child,
    url: String,
    chromium: PathBuf,
}

impl Driver {
    /// Starts `chromedriver`.
    ///
    /// # Errors
    ///
    /// The name of the program that is missing, or why it did not start.
    pub fn start() -> Result<Self, String> {
        let chromium = which("chromium").or_else(|| which("google-chrome")).ok_or("there is no chromium")?;
        let driver = which("chromedriver").ok_or("there is no chromedriver")?;
        let mut command = Command::new(driver);
        command.args(["--port=0", "--log-level=WARNING"]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut process = command.spawn().map_err(|error| format!("chromedriver does not start: {error}"))?;
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let port = lines.find_map(|line| {
            let line = line.ok()?;
            let port = line.split_once("started successfully on port ")?.1;
            port.trim_end_matches('.').parse::<u16>().ok()
        });
        // Read the rest of its output, so that the pipe does not fill up.
        std::thread::spawn(move || lines.count());
        match port {
            Some(port) => Ok(Self { process, url: format!("http://127.0.0.1:{port}"), chromium }),
            None => Err("chromedriver ended without naming its port".to_owned()),
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn which(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|path| path.join(program))
        .find(|path| path.is_file())
}

/// The browsers of one test.
pub struct Browsers<'a> {
    driver: &'a Driver,
    opened: Mutex<Vec<Client>>,
}

/// The configuration of a browser.
#[derive(Clone, Copy)]
pub struct Setup {
    pub has_scripts: bool,
    pub width: u32,
    pub is_dark: bool,
    /// If `true`, pressing a button waits for the next page. Otherwise the test has to wait.
    pub is_patient: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self { has_scripts: true, width: 1280, is_dark: false, is_patient: true }
    }
}

impl<'a> Browsers<'a> {
    pub fn new(driver: &'a Driver) -> Self {
        Self { driver, opened: Mutex::default() }
    }

    /// Opens a browser with a profile of its own, on a page.
    pub async fn open(&self, setup: Setup, page: &str) -> Browser {
        let mut arguments = vec![
            "--headless=new".to_owned(),
            "--disable-gpu".to_owned(),
            "--disable-dev-shm-usage".to_owned(),
            "--disable-background-networking".to_owned(),
            "--disable-component-update".to_owned(),
            "--no-first-run".to_owned(),
            // The browser can reach only the test's own server.
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost".to_owned(),
            format!("--blink-settings=preferredColorScheme={}", u8::from(!setup.is_dark)),
        ];
        if Path::new("/proc/self").metadata().is_ok_and(|me| std::os::unix::fs::MetadataExt::uid(&me) == 0) {
            // Chromium refuses to run as root otherwise.
            arguments.push("--no-sandbox".to_owned());
        }
        let mut preferences = json!({});
        if !setup.has_scripts {
            preferences = json!({ "profile.managed_default_content_settings.javascript": 2 });
        }
        let options = json!({
            "binary": self.driver.chromium,
            "args": arguments,
            "prefs": preferences,
            // A window is never as narrow as a phone, so emulate one.
            "mobileEmulation": { "deviceMetrics": {
                "width": setup.width, "height": 800, "pixelRatio": 1.0, "mobile": false, "touch": false,
            } },
        });
        let mut capabilities = fantoccini::wd::Capabilities::new();
        capabilities.insert("goog:chromeOptions".to_owned(), options);
        let strategy = if setup.is_patient { "normal" } else { "none" };
        capabilities.insert("pageLoadStrategy".to_owned(), json!(strategy));
        let mut builder = ClientBuilder::new(HttpConnector::new());
        let client = builder.capabilities(capabilities).connect(&self.driver.url).await.expect("a browser");
        self.opened.lock().unwrap().push(client.clone());
        client.goto(page).await.unwrap();
        Browser { client }
    }

    pub async fn close(self) {
        for client in self.opened.into_inner().unwrap() {
            let _ = client.close().await;
        }
    }
}

pub struct Browser {
    pub client: Client,
}

impl Browser {
    pub async fn go(&self, url: &str) {
        self.client.goto(url).await.unwrap();
    }

    /// Waits for an element and returns it.
    pub async fn find(&self, css: &str) -> Element {
        let found = self.client.wait().at_most(PATIENCE).for_element(Locator::Css(css)).await;
        match found {
            Ok(element) => element,
            Err(error) => panic!("no {css} ({error}) in {}", self.client.source().await.unwrap_or_default()),
        }
    }

    /// Waits until the page shows this text.
    pub async fn see(&self, text: &str) {
        let xpath = format!("//body[contains(normalize-space(.), \"{text}\")]");
        let found = self.client.wait().at_most(PATIENCE).for_element(Locator::XPath(&xpath)).await;
        if let Err(error) = found {
            panic!("no {text:?} ({error}) in {}", self.client.source().await.unwrap_or_default());
        }
    }

    pub async fn press(&self, css: &str) {
        self.press_what(Locator::Css(css)).await;
    }

    /// Presses the button with this text, hidden parts of it included.
    pub async fn press_button(&self, text: &str) {
        self.press_what(Locator::XPath(&format!("//button[normalize-space(.) = \"{text}\"]"))).await;
    }

    /// Presses an element. Finds it again if its page was replaced in between, because the press had no
    /// effect then.
    async fn press_what(&self, what: Locator<'_>) {
        let begun = Instant::now();
        loop {
            let found = self.client.wait().at_most(PATIENCE).for_element(what).await;
            let pressed = match found {
                Ok(element) => element.click().await,
                Err(error) => Err(error),
            };
            match pressed {
                Ok(()) => return,
                Err(error) if begun.elapsed() > PATIENCE => {
                    panic!("no {what:?} ({error}) in {}", self.client.source().await.unwrap_or_default())
                }
                Err(_) => {}
            }
        }
    }

    pub async fn write(&self, css: &str, text: &str) {
        self.find(css).await.send_keys(text).await.unwrap();
    }

    /// Returns the number of elements.
    pub async fn count(&self, css: &str) -> usize {
        self.client.find_all(Locator::Css(css)).await.unwrap().len()
    }

    /// Runs a script of the test's own in the page.
    pub async fn evaluate(&self, script: &str) -> Value {
        self.client.execute(script, Vec::new()).await.unwrap()
    }

    pub async fn sign_up(&self, site: &str, name: &str) {
        self.fill_in(&format!("{site}/signup"), name, false).await;
    }

    pub async fn log_in(&self, site: &str, name: &str, remember: bool) {
        self.fill_in(&format!("{site}/login"), name, remember).await;
    }

    async fn fill_in(&self, page: &str, name: &str, remember: bool) {
        self.go(page).await;
        let form = format!("form[action=\"{}\"]", &page[page.rfind('/').unwrap()..]);
        self.write(&format!("{form} #name"), name).await;
        self.write(&format!("{form} #password"), "correct horse").await;
        if remember {
            self.press(&format!("{form} label[for=remember]")).await;
        }
        self.press(&format!("{form} button")).await;
        self.see(&format!("Hello, {name}!")).await;
    }
}
