//! The HTML of the pages. There are no scripts.

use std::time::Duration;

use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Response};
use maud::{DOCTYPE, Markup, html};
use session_cached_db::Stats;

pub(crate) struct Product {
    pub(crate) id: &'static str,
    pub(crate) name: &'static str,
    what: &'static str,
    cents: u32,
}

const PRODUCTS: &[Product] = &[
    Product { id: "lamp", name: "Desk lamp", what: "Warm light, no flicker", cents: 4_900 },
    Product { id: "mug", name: "Mug", what: "Holds half a litre", cents: 1_200 },
    Product { id: "notebook", name: "Notebook", what: "Dotted, 192 pages", cents: 950 },
    Product { id: "pen", name: "Fountain pen", what: "Fine nib, blue", cents: 2_800 },
];

pub(crate) fn product(id: &str) -> Option<&'static Product> {
    PRODUCTS.iter().find(|product| product.id == id)
}

/// The visitor who looks at the page.
pub(crate) struct Visitor {
    pub(crate) name: Option<String>,
}

pub(crate) struct Home {
    pub(crate) visitor: Visitor,
    pub(crate) visits: Option<u32>,
    pub(crate) cart: Vec<CartLine>,
    pub(crate) is_cart_full: bool,
}

pub(crate) struct CartLine {
    pub(crate) line: String,
    pub(crate) product: &'static Product,
}

/// One of the sessions of a user.
pub(crate) struct OwnSession {
    pub(crate) label: String,
    pub(crate) device: String,
    pub(crate) is_this_one: bool,
    pub(crate) begun: Duration,
    pub(crate) last_used: Duration,
}

pub(crate) fn home(home: &Home) -> Response {
    let total = home.cart.iter().map(|line| line.product.cents).sum();
    let content = html! {
        h1 { @match &home.visitor.name { Some(name) => { "Hello, " (name) "!" } None => { "Welcome!" } } }
        p.lead {
            @match home.visits {
                Some(visits) => { "This is visit number " strong #visits { (visits) } " of this session." }
                None => { "You have no session, and to look around you need none." }
            }
        }
        section aria-labelledby="shop" {
            h2 #shop { "Shop" }
            ul.products {
                @for product in PRODUCTS {
                    li.card {
                        h3 { (product.name) }
                        p { (product.what) }
                        p.price { (price(product.cents)) }
                        form method="post" action="/cart/add" {
                            input type="hidden" name="product" value=(product.id);
                            button disabled[home.is_cart_full] {
                                "Add" span.unseen { " the " (product.name) } " to the cart"
                            }
                        }
                    }
                }
            }
        }
        section aria-labelledby="cart" {
            h2 #cart { "Your cart" }
            @if home.cart.is_empty() {
                p #empty { "There is nothing in it." }
            } @else {
                ul.lines {
                    @for line in &home.cart {
                        li.line {
                            span.grow { (line.product.name) }
                            span.price { (price(line.product.cents)) }
                            form method="post" action="/cart/remove" {
                                input type="hidden" name="line" value=(line.line);
                                button.quiet { "Remove" span.unseen { " the " (line.product.name) } }
                            }
                        }
                    }
                    li.line.total { span.grow { "Total of " span #items { (home.cart.len()) } } span.price { (price(total)) } }
                }
            }
        }
        section aria-labelledby="counted" {
            h2 #counted { "What this server has counted" }
            p { "Since it was started, for all visitors. A session in use is read from the cache, so the reads of the database hardly move." }
            iframe src="/counters" title="Counters of the session store, every two seconds" {}
        }
    };
    page("Shop", Some(&home.visitor), &content).into_response()
}

pub(crate) fn sign_up(refused: Option<(&str, &str)>) -> Response {
    let (name, why) = refused.map_or(("", None), |(name, why)| (name, Some(why)));
    let other = html! { p { "Been here before? " a href="/login" { "Log in" } "." } };
    let status = if why.is_some() { StatusCode::UNPROCESSABLE_ENTITY } else { StatusCode::OK };
    (status, credentials("Sign up", "/signup", "new-password", name, why, &other)).into_response()
}

pub(crate) fn log_in(failed_as: Option<&str>) -> Response {
    let why = failed_as.map(|_| "There is no such name with this password.");
    let other = html! { p { "New here? " a href="/signup" { "Sign up" } "." } };
    let status = if why.is_some() { StatusCode::UNAUTHORIZED } else { StatusCode::OK };
    let name = failed_as.unwrap_or_default();
    (status, credentials("Log in", "/login", "current-password", name, why, &other)).into_response()
}

fn credentials(
    title: &str,
    action: &str,
    password_kind: &str,
    name: &str,
    why: Option<&str>,
    other: &Markup,
) -> Html<String> {
    let content = html! {
        h1 { (title) }
        @if let Some(why) = why { p.alert #why role="alert" { (why) } }
        form.stack method="post" action=(action) {
            label for="name" { "Name" }
            input #name name="name" type="text" autocomplete="username" autocapitalize="none" spellcheck="false"
                required maxlength="40" value=(name) aria-describedby=[why.map(|_| "why")];
            label for="password" { "Password, at least 8 characters" }
            input #password name="password" type="password" autocomplete=(password_kind)
                required minlength="8" maxlength="200" aria-describedby=[why.map(|_| "why")];
            div.check {
                input #remember name="remember" type="checkbox" value="yes";
                label for="remember" { "Remember me on this device for 30 days" }
            }
            button { (title) }
        }
        (other)
    };
    page(title, Some(&Visitor { name: None }), &content)
}

pub(crate) fn own_sessions(visitor: &Visitor, sessions: &[OwnSession]) -> Response {
    let content = html! {
        h1 { "Where you are logged in" }
        ul.lines #sessions {
            @for session in sessions {
                li.line {
                    div.grow {
                        strong { (session.device) }
                        @if session.is_this_one { " " span.badge { "this one" } }
                        p.small { "Last used " (ago(session.last_used)) ", begun " (ago(session.begun)) }
                    }
                    @if session.is_this_one {
                        form method="post" action="/logout" { button.quiet { "Log out here" } }
                    } @else {
                        form method="post" action="/sessions/end" {
                            input type="hidden" name="label" value=(session.label);
                            button.quiet { "End" span.unseen { " the session of " (session.device) } }
                        }
                    }
                }
            }
        }
        form method="post" action="/logout-everywhere" { button #everywhere { "Log out everywhere" } }
    };
    page("Your sessions", Some(visitor), &content).into_response()
}

/// Returns the counters alone, for a frame.
pub(crate) fn counters_alone(stats: &Stats) -> Html<String> {
    document("Counters", &html! { body.framed { (counters(stats)) } })
}

fn counters(stats: &Stats) -> Markup {
    let counted = [
        ("Hits", stats.hits),
        ("Misses", stats.misses),
        ("Fills", stats.fills),
        ("Database reads", stats.misses + stats.bypasses),
        ("Loads that shared another's", stats.joined),
        ("Writes of sessions in use", stats.fenced_writes + stats.degraded_writes),
        ("Merged saves", stats.merges),
    ];
    html! {
        dl.counters { @for (name, count) in counted { div { dt { (name) } dd { (count) } } } }
    }
}

pub(crate) fn problem(status: StatusCode, text: &str) -> Response {
    let content = html! {
        h1 { (status.canonical_reason().unwrap_or("Sorry")) }
        p.alert role="alert" { (text) }
        p { a href="/" { "Back to the shop" } }
    };
    (status, page("Sorry", None, &content)).into_response()
}

/// Returns a page. Without a `visitor`, its header has no links for logging in or out.
fn page(title: &str, visitor: Option<&Visitor>, content: &Markup) -> Html<String> {
    let body = html! {
        body {
            a.skip href="#content" { "To the content" }
            header.bar {
                a.brand href="/" { "Session Shop" }
                @if let Some(visitor) = visitor {
                    nav aria-label="Your account" {
                        @if visitor.name.is_some() {
                            a href="/sessions" { "Your sessions" }
                            form method="post" action="/logout" { button.quiet { "Log out" } }
                        } @else {
                            a href="/login" { "Log in" }
                            a href="/signup" { "Sign up" }
                        }
                    }
                }
            }
            main #content { (content) }
            footer { p.small { "An example of session-cached-db. No scripts, no trackers, one cookie if you need one." } }
        }
    };
    document(title, &body)
}

fn document(title: &str, body: &Markup) -> Html<String> {
    let document = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " · Session Shop" }
                link rel="stylesheet" href="/style.css";
                link rel="icon" href="data:,";
            }
            (body)
        }
    };
    Html(document.into_string())
}

fn price(cents: u32) -> String {
    format!("€ {}.{:02}", cents / 100, cents % 100)
}

fn ago(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (count, unit) = match seconds {
        0..60 => return "just now".to_owned(),
        60..3_600 => (seconds / 60, "minute"),
        3_600..86_400 => (seconds / 3_600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    format!("{count} {unit}{} ago", if count == 1 { "" } else { "s" })
}
