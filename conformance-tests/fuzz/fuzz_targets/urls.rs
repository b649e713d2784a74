//! URLs of caches and databases. Nothing is connected: caches connect when they are used, SQLite is in
//! memory, and the other databases' URLs end with a parameter that is refused.

#![no_main]

use std::fmt::{Debug, Display};

use libfuzzer_sys::fuzz_target;

const SECRET: &str = "s3cr3t-p4ssw0rd";

fn check<T, E: Debug + Display>(what: Result<T, E>) -> Option<T> {
    what.inspect_err(|error| {
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains(SECRET), "an error shows the password: {shown}");
    })
    .ok()
}

fuzz_target!(|input: &str| {
    // If the input contains the word, it is no secret.
    if input.contains(SECRET) {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let _inside = runtime.enter();

    check(cache_backends::connect(input));
    // In the place for passwords, and in an unexpected one.
    let with_password = |scheme: &str| format!("{scheme}://user:{SECRET}@{input}");
    let with_parameter =
        |url: &str| format!("{url}{}no-such-parameter={SECRET}", if url.contains('?') { '&' } else { '?' });
    for scheme in ["redis", "rediss", "redis+unix", "redis+cluster", "redis+sentinel", "memcache"] {
        let url = with_password(scheme);
        if let Some(cache) = check(cache_backends::connect_to_inspect(&url)) {
            assert!(!format!("{cache:?}").contains(SECRET), "Debug shows the password");
        }
        check(cache_backends::connect(&with_parameter(&url)));
    }
    check(cache_backends::connect(&format!("moka://{input}")));
    check(cache_backends::connect(&with_parameter(&format!("moka://{input}"))));

    for scheme in ["postgres", "mysql", "mariadb"] {
        let url = with_parameter(&with_password(scheme));
        assert!(check(runtime.block_on(db_backends::connect(&url))).is_none());
    }
    // In memory only: a URL that names a file would create it.
    let parameters: String = input.chars().filter(|character| !matches!(character, '/' | '#')).collect();
    check(runtime.block_on(db_backends::connect(&format!("sqlite::memory:?{parameters}"))));
});
