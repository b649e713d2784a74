//! `cargo xtask matrix`: which backends are tested together, and on which images.

use lexopt::{Arg, Parser};
use serde_json::{Value, json};

use crate::Result;
use crate::help::Help;
use crate::table::{CACHES, DATABASES, NEAR_PAIRS, VARIANT_PAIRS, server};

pub(crate) const HELP: Help = Help {
    usage: "matrix [--json]",
    summary: "Prints every pair of cache and database that is tested, with its images.",
    details: "",
    options: &[("--json", "Prints the pairs in the form that GitHub Actions reads.")],
    examples: &[("matrix --json", "a matrix for GitHub Actions")],
};

pub(crate) fn run(mut args: Parser) -> Result {
    let mut as_json = false;
    while let Some(arg) = args.next()? {
        match arg {
            Arg::Long("json") => as_json = true,
            other => return Err(other.unexpected().into()),
        }
    }
    let pairs = pairs();
    if as_json {
        println!("{}", json(&pairs));
    } else {
        for pair in &pairs {
            println!("{:<14} {:<10} {}", pair.cache, pair.database, pair.images.join(" "));
        }
    }
    Ok(())
}

struct Pair {
    cache: &'static str,
    database: &'static str,
    images: Vec<String>,
}

fn pairs() -> Vec<Pair> {
    let crossed = CACHES.iter().flat_map(|cache| DATABASES.iter().map(move |database| (*cache, *database)));
    let image = |name: &str| server(name).map(|server| server.image.reference());
    let pair = |(cache, database)| Pair {
        cache,
        database,
        images: [cache, database].into_iter().filter_map(image).collect(),
    };
    crossed.chain(VARIANT_PAIRS.iter().chain(NEAR_PAIRS).copied()).map(pair).collect()
}

fn json(pairs: &[Pair]) -> Value {
    let include: Vec<Value> = pairs
        .iter()
        .map(|pair| json!({ "cache": pair.cache, "db": pair.database, "images": pair.images.join(" ") }))
        .collect();
    json!({ "include": include })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{IMAGES, NEAR, NOTIFIED, Ports, SERVERS};

    #[test]
    fn every_cache_meets_every_database_once() {
        let mut pairs: Vec<_> = pairs().into_iter().map(|pair| (pair.cache, pair.database)).collect();
        let expected = CACHES.len() * DATABASES.len() + VARIANT_PAIRS.len() + NEAR_PAIRS.len();
        assert_eq!(pairs.len(), expected);
        pairs.sort_unstable();
        pairs.dedup();
        assert_eq!(pairs.len(), expected);
    }

    #[test]
    fn every_variant_of_a_server_has_a_pair() {
        for server in SERVERS {
            let is_in = |pair: &Pair| {
                // A near cache in front of it will do.
                let cache = pair.cache.strip_prefix(NEAR).unwrap_or(pair.cache);
                [cache, pair.database].contains(&server.name)
            };
            assert!(pairs().iter().any(is_in), "{}", server.name);
        }
        for (cache, database) in VARIANT_PAIRS.iter().chain(NEAR_PAIRS) {
            assert!(server(cache).is_some() || *cache == NOTIFIED, "{cache}");
            assert!(server(database).is_some() || DATABASES.contains(database), "{database}");
        }
    }

    #[test]
    fn only_backends_in_the_process_need_no_image() {
        let embedded: Vec<_> = CACHES.iter().chain(DATABASES).filter(|name| server(name).is_none()).collect();
        assert_eq!(embedded, [&"moka", &"sqlite"]);
        let pairs = pairs();
        let without = pairs.iter().filter(|pair| pair.images.is_empty()).count();
        assert_eq!(without, 1, "moka with sqlite");
    }

    #[test]
    fn official_images_are_pinned_to_a_patch_release() {
        for image in IMAGES {
            let tag = image.official.split_once(':').map(|(_, tag)| tag).unwrap_or_default();
            assert_eq!(
                tag.split('.').filter(|part| part.parse::<u32>().is_ok()).count(),
                if image.name == "postgres" { 2 } else { 3 },
                "{}",
                image.official
            );
        }
    }

    #[test]
    fn names_variables_and_service_ports_are_unique() {
        let unique = |mut names: Vec<String>| {
            let before = names.len();
            names.sort();
            names.dedup();
            assert_eq!(names.len(), before, "{names:?}");
        };
        unique(SERVERS.iter().map(|server| server.name.to_owned()).collect());
        unique(SERVERS.iter().map(|server| server.url_var.to_owned()).collect());
        unique(IMAGES.iter().map(|image| image.image_var.to_owned()).collect());
        let ports = SERVERS.iter().filter_map(|server| Some((server.service_port?, server.ports)));
        unique(
            ports
                .flat_map(|(first, ports)| {
                    first..first + if let Ports::OneToOne(count) = ports { count } else { 1 }
                })
                .map(|port| port.to_string())
                .collect(),
        );
    }

    #[test]
    fn cluster_gets_its_ports_and_is_reached_on_each() {
        let cluster = server("redis-cluster").unwrap();
        let ports = [7000, 7001, 7002];
        assert_eq!(cluster.env_on(&ports), [("CLUSTER_PORTS", "7000 7001 7002".to_owned())]);
        assert_eq!(cluster.url_on(&ports), "redis+cluster://127.0.0.1:7000,127.0.0.1:7001,127.0.0.1:7002/");
    }

    #[test]
    fn sentinel_group_is_reached_by_its_sentinels() {
        let group = server("redis-sentinel").unwrap();
        let ports = [7000, 7001, 7002, 7003, 7004];
        assert_eq!(group.env_on(&ports), [("SENTINEL_PORTS", "7000 7001 7002 7003 7004".to_owned())]);
        let url = "redis+sentinel://127.0.0.1:7002,127.0.0.1:7003,127.0.0.1:7004/sessions";
        assert_eq!(group.url_on(&ports), url);
    }

    #[test]
    fn json_has_the_form_of_a_github_matrix() {
        let json = json(&pairs());
        assert_eq!(json["include"][0]["cache"], "moka");
        assert_eq!(json["include"][0]["db"], "sqlite");
        assert_eq!(json["include"].as_array().unwrap().len(), pairs().len());
    }
}
