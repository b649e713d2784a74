//! Accessibility and layout of the pages.

use serde_json::{Value, json};

use crate::browser::{Browser, Browsers, Setup};
use crate::server::Server;

/// Opens every kind of page, one after the other, and runs `check` on each.
async fn each_page(browsers: &Browsers<'_>, setup: Setup, check: impl AsyncFn(&Browser, &str)) {
    let server = Server::new().await;
    let site = server.listen().await;
    let browser = browsers.open(setup, &site).await;
    browser.see("You have no session").await;
    check(&browser, "the home page of a stranger").await;
    for page in ["signup", "login"] {
        browser.go(&format!("{site}/{page}")).await;
        browser.see("Remember me").await;
        check(&browser, page).await;
    }
    browser.write("form[action=\"/login\"] #name", "unknown").await;
    browser.write("form[action=\"/login\"] #password", "wrong horse").await;
    browser.press("form[action=\"/login\"] button").await;
    browser.see("There is no such name").await;
    check(&browser, "a refused login").await;

    // This name is as wide as a name can be, and has no space to break at.
    let name = "w".repeat(40);
    browser.sign_up(&site, &name).await;
    for product in ["Desk lamp", "Mug", "Notebook", "Fountain pen"] {
        browser.press_button(&format!("Add the {product} to the cart")).await;
        browser.find("#items").await;
    }
    browser.see("Total of").await;
    check(&browser, "the home page with a cart").await;
    browser.go(&format!("{site}/sessions")).await;
    browser.see("Where you are logged in").await;
    check(&browser, "the list of sessions").await;
    browser.go(&format!("{site}/counters")).await;
    browser.see("Database reads").await;
    check(&browser, "the counters").await;
}

pub async fn page_does_not_scroll_sideways_on_a_phone(browsers: &Browsers<'_>) {
    page_does_not_scroll_sideways(browsers, 360).await;
}

pub async fn page_does_not_scroll_sideways_on_a_desktop(browsers: &Browsers<'_>) {
    page_does_not_scroll_sideways(browsers, 1280).await;
}

async fn page_does_not_scroll_sideways(browsers: &Browsers<'_>, width: u32) {
    each_page(browsers, Setup { width, ..Setup::default() }, async |browser, page| {
        let script = "const root = document.documentElement; return [window.innerWidth, root.scrollWidth]";
        let measured = browser.evaluate(script).await;
        assert_eq!(measured[0], json!(width), "{page}");
        assert!(measured[1].as_u64().unwrap() <= u64::from(width), "{page}: {measured}");
    })
    .await;
}

pub async fn every_field_and_button_has_a_name(browsers: &Browsers<'_>) {
    each_page(browsers, Setup::default(), async |browser, page| {
        let script = r#"
            const nameless = [];
            for (const field of document.querySelectorAll("input:not([type=hidden]), select, textarea")) {
                if (!field.labels.length || !field.labels[0].textContent.trim()) nameless.push(field.outerHTML);
            }
            for (const control of document.querySelectorAll("button, a, h1, h2, h3")) {
                if (!control.textContent.trim()) nameless.push(control.outerHTML);
            }
            for (const frame of document.querySelectorAll("iframe")) {
                if (!frame.title) nameless.push(frame.outerHTML);
            }
            const ids = [...document.querySelectorAll("[id]")].map(element => element.id);
            return {
                nameless,
                twice: ids.filter((id, i) => ids.indexOf(id) !== i),
                lang: document.documentElement.lang,
                title: document.title,
                scripts: document.scripts.length,
            };
        "#;
        let found = browser.evaluate(script).await;
        assert_eq!(found["nameless"], json!([]), "{page}");
        assert_eq!(found["twice"], json!([]), "{page}");
        assert_eq!(found["lang"], json!("en"), "{page}");
        assert_ne!(found["title"], json!(""), "{page}");
        assert_eq!(found["scripts"], json!(0), "{page}");
    })
    .await;
}

pub async fn text_can_be_read_in_light_and_in_dark(browsers: &Browsers<'_>) {
    for is_dark in [false, true] {
        each_page(browsers, Setup { is_dark, ..Setup::default() }, async |browser, page| {
            let found = browser.evaluate(CONTRASTS).await;
            assert_eq!(found["too_faint"], json!([]), "{page}, dark: {is_dark}");
            let is_page_dark = found["page"].as_f64().unwrap() < 0.2;
            assert_eq!(is_page_dark, is_dark, "{page}: {found}");
            assert_ne!(found["texts"], Value::from(0), "{page}");
        })
        .await;
    }
}

/// A script that finds texts without the contrast to their background that WCAG 2 demands at level AA.
const CONTRASTS: &str = r#"
    const channels = color => color.match(/[\d.]+/g).map(Number);
    const luminance = ([r, g, b]) => {
        const [x, y, z] = [r, g, b].map(c => c / 255).map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        return 0.2126 * x + 0.7152 * y + 0.0722 * z;
    };
    const behind = element => {
        for (let at = element; at; at = at.parentElement) {
            const color = channels(getComputedStyle(at).backgroundColor);
            if (color.length < 4 || color[3] > 0) return color;
        }
        return [255, 255, 255];
    };
    const too_faint = [];
    let texts = 0;
    for (const element of document.querySelectorAll("body *")) {
        const has_text = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
        if (!has_text || element.closest(".unseen, .skip, iframe")) continue;
        texts += 1;
        const [light, dark] = [luminance(channels(getComputedStyle(element).color)), luminance(behind(element))].sort((a, b) => b - a);
        const contrast = (light + 0.05) / (dark + 0.05);
        if (contrast < 4.5) too_faint.push([element.outerHTML, contrast]);
    }
    return { too_faint, texts, page: luminance(behind(document.body)) };
"#;
