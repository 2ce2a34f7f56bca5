use std::fmt::Write;

use tickscope_common::catalog::PROBES;

use super::*;

/// The error that `text` gives.
fn refused(text: &str) -> String {
    Config::parse(text, "daemon.toml").expect_err("it is invalid").to_string()
}

#[test]
fn the_manual_and_an_empty_file_are_the_default() {
    assert_eq!(Config::parse("", "empty").unwrap(), Config::default());
    assert_eq!(Config::parse(MANUAL, "daemon.toml").unwrap(), Config::default());
}

#[test]
fn the_manual_has_every_key_of_the_schema_and_a_comment_for_each() {
    let schema = schemars::schema_for!(Config).to_value();
    let mut keys = Vec::new();
    collect_keys(&schema, &schema, &mut keys);
    assert!(keys.len() > 20, "{keys:?}");
    for key in keys {
        let said = MANUAL.lines().any(|line| {
            let line = line.trim_start_matches(['#', ' ']);
            let header = line.strip_prefix("[[").or(line.strip_prefix('[')).unwrap_or(line);
            let rest = header.strip_prefix("probes.").unwrap_or(header).strip_prefix(key.as_str());
            rest.is_some_and(|rest| rest.starts_with([' ', ']', '.']))
                || header.starts_with(&format!("{key}."))
        });
        assert!(said, "daemon.toml does not say {key}");
    }
    let mut before = "";
    for (number, line) in MANUAL.lines().enumerate() {
        if line.contains(" = ") && !line.starts_with('#') {
            assert!(before.starts_with('#'), "line {}: no comment above {line}", number + 1);
        }
        before = line;
    }
}

/// Names of all properties, at any depth.
fn collect_keys(schema: &serde_json::Value, root: &serde_json::Value, keys: &mut Vec<String>) {
    if let Some(name) = schema["$ref"].as_str() {
        let definition = &root["$defs"][name.trim_start_matches("#/$defs/")];
        collect_keys(definition, root, keys);
    }
    if let Some(items) = schema.get("items") {
        collect_keys(items, root, keys);
    }
    for (key, value) in schema["properties"].as_object().into_iter().flatten() {
        keys.push(key.clone());
        collect_keys(value, root, keys);
    }
}

#[test]
fn everything_can_be_set() {
    let config = Config::parse(
        r#"
        interval = "200ms"
        listen = { http = "[::1]:1234", reload_endpoint = true }
        budget = { cpu = "2.5%", memory = "1GiB" }
        log = { level = "debug", format = "json" }
        [[target]]
        name = "a"
        match = { comm = "a", exe = "/bin/a", pid = 7, cgroup = "/a", unit = "a.service" }
        [[target]]
        name = "b"
        match = { pid = 8 }
        [probes.runqueue]
        enabled = false
        [probes.syscall]
        enabled = true
        outlier_above = "20us"
        [probes.offcpu]
        outlier_above = "never"
        "#,
        "test",
    )
    .unwrap();
    assert_eq!(config.interval, Duration::from_millis(200));
    assert_eq!(config.listen.http, "[::1]:1234".parse().unwrap());
    assert!(config.listen.reload_endpoint);
    assert!((config.budget.cpu - 0.025).abs() < 1e-12);
    assert_eq!(config.budget.memory_bytes, 1 << 30);
    assert_eq!((config.log.level, config.log.format), (LogLevel::Debug, LogFormat::Json));
    assert_eq!(config.target.len(), 2);
    assert_eq!(config.target[0].matching.exe, Some("/bin/a".into()));
    assert_eq!(config.target[0].matching.unit.as_deref(), Some("a.service"));
    assert_eq!(config.target[1].matching, Match { pid: Some(8), ..Match::default() });
    let set: Vec<_> = (0..PROBES.len())
        .map(|index| (config.probes.enabled(index), config.probes.outlier_above(index)))
        .collect();
    assert_eq!(
        set,
        [
            (false, OutlierAbove::Auto),
            (true, OutlierAbove::Auto),
            (true, OutlierAbove::Never),
            (true, OutlierAbove::Auto),
            (true, OutlierAbove::Above(Duration::from_micros(20))),
            (false, OutlierAbove::Auto),
        ]
    );
}

#[test]
fn errors_stand_at_their_place() {
    insta::assert_snapshot!(refused("interval = \"1s\"\nintervall = \"1s\"\n"), @"");
    insta::assert_snapshot!(refused("[budget]\n  cpu = \"1\"\n"), @"");
    insta::assert_snapshot!(refused("interval = \"20us\"\n"), @"");
    insta::assert_snapshot!(refused("interval = 1\n"), @"");
    insta::assert_snapshot!(refused("interval = \n"), @"");
    insta::assert_snapshot!(refused("[probes.runque]\nenabled = true\n"), @"");
    insta::assert_snapshot!(refused("[probes.zzz]\nenabled = true\n"), @"");
    insta::assert_snapshot!(refused("[[slo]]\nname = \"a\"\n"), @"");
    insta::assert_snapshot!(refused("[probes.runqueue]\noutlier_above = \"often\"\n"), @"");
}

#[test]
fn errors_of_targets_stand_at_their_place() {
    let target = |name: &str, matching: &str| format!("[[target]]\nname = \"{name}\"\nmatch = {{ {matching} }}\n");
    insta::assert_snapshot!(refused(&target("a", "")), @"");
    insta::assert_snapshot!(refused(&target("A b", "pid = 1")), @"");
    insta::assert_snapshot!(refused(&target("a", "comm = \"matching-engine-1\"")), @"");
    insta::assert_snapshot!(refused(&target("a", "exe = \"engine\"")), @"");
    insta::assert_snapshot!(refused(&target("a", "unit = \"engine\"")), @"");
    insta::assert_snapshot!(refused(&target("a", "cgroup = \"trading.slice\"")), @"");
    insta::assert_snapshot!(refused(&target("a", "pid = 0")), @"");
    insta::assert_snapshot!(refused("[[target]]\nname = \"a\"\n"), @"");
    insta::assert_snapshot!(refused("target = []"), @"");
    let twice = target("a", "pid = 1") + &target("b", "pid = 2") + &target("a", "pid = 3");
    insta::assert_snapshot!(refused(&twice), @"");
    let many = (0..17).fold(String::new(), |mut text, i| {
        write!(text, "{}", target(&format!("t{i}"), "pid = 1")).unwrap();
        text
    });
    insta::assert_snapshot!(refused(&many), @"");
}

#[test]
fn files_that_are_none() {
    let folder = tempfile::tempdir().unwrap();
    let load = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let error = Config::load(&path).expect_err("it is invalid").to_string();
        error.replace(&folder.path().display().to_string(), "")
    };
    insta::assert_snapshot!(load("huge", &vec![b'#'; 2 * 1024 * 1024]), @"");
    insta::assert_snapshot!(load("binary", b"interval = \"1s\"\n\xff\xfe"), @"");
    assert!(matches!(Config::load(&folder.path().join("none")), Err(ConfigError::Read { .. })));
    let longest = vec![b'#'; SIZE_LIMIT_BYTES as usize];
    std::fs::write(folder.path().join("longest"), longest).unwrap();
    assert_eq!(Config::load(&folder.path().join("longest")).unwrap(), Config::default());
}

#[test]
fn garbage_is_refused_without_a_panic() {
    for text in ["\u{0}", "[", "[[[[", "a.b.c = {", "=\"", "\u{feff}[", "interval = \"\\u{110000}\"", "[probes]\nrunqueue = 3"] {
        assert!(refused(text).contains("-->"), "{text}");
    }
    // Deep nesting ends in an error, not in a stack overflow.
    assert!(refused(&format!("a = {}", "[".repeat(200_000))).contains("-->"));
}
