//! `cargo xtask new-cache NAME` and `new-db NAME`: scaffold a backend that compiles, and fails the cases of
//! the methods that are still to be written.
//!
//! The files of a backend are under `cache` and `db`, with `{{name}}` and `{{Name}}` in them. Everything is
//! checked and made before the first file is written. Not with cargo-generate, which makes new directories:
//! half of a backend is edits of files that exist.

mod edit;
mod name;
#[cfg(test)]
mod tests;
mod write;

use std::path::Path;

use lexopt::{Arg, Parser, ValueExt};

use self::name::Name;
use self::write::Plan;
use crate::Result;
use crate::help::Help;

pub(crate) const CACHE_HELP: Help = Help {
    usage: "new-cache NAME",
    summary: "Scaffolds a cache backend in cache-backends: module, feature, tests, documentation.",
    details: "CONTRIBUTING.md goes through all steps.",
    options: &[("NAME", "The name of its module and of its cargo feature: a-z, 0-9 and _.")],
    examples: &[("new-cache etcd", "a cache in etcd")],
};
pub(crate) const DB_HELP: Help = Help {
    usage: "new-db NAME",
    summary: "Scaffolds a database backend in db-backends: module, feature, tests, documentation.",
    details: "CONTRIBUTING.md goes through all steps.",
    options: &[("NAME", "The name of its module and of its cargo feature: a-z, 0-9 and _.")],
    examples: &[("new-db cockroach", "a database in CockroachDB")],
};

/// A kind of backend.
struct Kind {
    /// The crate of its backends.
    package: &'static str,
    /// The end of its type's name.
    suffix: &'static str,
    /// The end of its test's name in `conformance-tests`.
    layer: &'static str,
    /// A module among which the new one goes.
    neighbour: &'static str,
    /// Its row in the table of features.
    row: &'static str,
    /// The paths and contents of its files.
    files: &'static [(&'static str, &'static str)],
}

const CACHE: Kind = Kind {
    package: "cache-backends",
    suffix: "Cache",
    layer: "cache",
    neighbour: "pub mod moka;",
    row: "| `{{name}}` | `{{name}}::{{Name}}` | not written yet | |",
    files: &[
        ("cache-backends/src/{{name}}/mod.rs", include_str!("cache/mod.rs.template")),
        ("cache-backends/src/{{name}}/builder.rs", include_str!("cache/builder.rs.template")),
        ("cache-backends/tests/{{name}}.rs", include_str!("cache/test.rs.template")),
        ("conformance-tests/tests/{{name}}_cache.rs", include_str!("cache/conformance.rs.template")),
    ],
};

const DB: Kind = Kind {
    package: "db-backends",
    suffix: "Persistence",
    layer: "db",
    neighbour: "pub mod sqlite;",
    row: "| `{{name}}` | not written yet | `{{name}}::{{Name}}` |",
    files: &[
        ("db-backends/src/{{name}}/mod.rs", include_str!("db/mod.rs.template")),
        ("db-backends/tests/{{name}}.rs", include_str!("db/test.rs.template")),
        ("conformance-tests/tests/{{name}}_db.rs", include_str!("db/conformance.rs.template")),
    ],
};

pub(crate) fn new_cache(args: Parser) -> Result {
    run(args, &CACHE, CACHE_HELP.usage)
}

pub(crate) fn new_db(args: Parser) -> Result {
    run(args, &DB, DB_HELP.usage)
}

fn run(mut args: Parser, kind: &Kind, usage: &str) -> Result {
    let mut name = None;
    while let Some(arg) = args.next()? {
        match arg {
            Arg::Value(value) if name.is_none() => name = Some(value.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    let name = name.ok_or_else(|| format!("a backend needs a name; usage: cargo xtask {usage}"))?;
    let plan = plan(Path::new("."), kind, &name)?;
    plan.write()?;
    for path in plan.paths() {
        eprintln!("{}", path.display());
    }
    let Kind { package, layer, .. } = kind;
    eprintln!("\nThe cases that are still to be written:");
    println!(
        "CONFORMANCE_{}_URL={name}://127.0.0.1/ cargo test --package conformance-tests --all-features --test {name}_{layer}",
        name.to_ascii_uppercase()
    );
    eprintln!("Begin in {package}/src/{name}/mod.rs; CONTRIBUTING.md goes on from here.");
    Ok(())
}

/// Plans every file of a new backend. Writes nothing.
fn plan(root: &Path, kind: &Kind, name: &str) -> Result<Plan> {
    let name = Name::parse(name)?;
    let fill = |text: &str| name.fill(text, kind.suffix);
    let mut plan = Plan::new(root);
    for (path, template) in kind.files {
        plan.create(&fill(path), &fill(template))?;
    }
    let Kind { package, layer, neighbour, .. } = kind;
    for path in [
        format!("{package}/src/{name}.rs"),
        format!("{package}/src/{name}"),
        format!("{package}/tests/{name}"),
    ] {
        plan.vacant(&path)?;
    }
    plan.edit(&format!("{package}/Cargo.toml"), |text| edit::add_feature(text, name.as_str()))?;
    plan.edit(&format!("{package}/src/lib.rs"), |text| edit::add_module(text, name.as_str(), neighbour))?;
    plan.edit(&format!("{package}/README.md"), |text| edit::add_row(text, &fill(kind.row)))?;
    plan.edit("conformance-tests/Cargo.toml", |text| {
        let text = edit::enable_feature(text, package, name.as_str())?;
        edit::add_test(&text, &format!("{name}_{layer}"))
    })?;
    plan.format()?;
    Ok(plan)
}
