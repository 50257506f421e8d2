//! Text of any kind, however wrong, ends in a configuration or in words.

use std::collections::BTreeMap;
use std::path::Path;

use proptest::prelude::*;

use super::{File, Known, Layer, Origin, Overlay, PORT_KEYS, build, build_port};
use crate::config::SwitchConfig;

/// A key, or a word near one, and a value that fits it or does not.
fn setting() -> impl Strategy<Value = (String, String)> {
    let keys: Vec<&str> = PORT_KEYS.iter().map(|key| key.name).collect();
    let key =
        prop_oneof![8 => proptest::sample::select(keys).prop_map(String::from), 1 => "\\PC{0,12}"];
    let value = prop_oneof![
        "[0-9]{1,6}",
        "[0-9+,-]{0,12}",
        "\\PC{0,20}",
        "true|false|connect"
    ];
    (key, value)
}

proptest! {
    #![proptest_config(ProptestConfig {
        rng_seed: proptest::test_runner::RngSeed::Fixed(1),
        failure_persistence: None,
        ..ProptestConfig::with_cases(2_000)
    })]

    #[test]
    fn any_port_on_the_command_line_is_taken_or_refused(
        name in "[a-z]{0,3}|\\PC{0,70}",
        settings in proptest::collection::vec(setting(), 0..4),
    ) {
        let mut line = name;
        for (key, value) in settings {
            line += &format!(",{key}={value}");
        }
        let built = Layer::from_line(&line)
            .and_then(|layer| build(&File::default(), &Overlay::default(), &[layer], Path::new("/r")));
        match built {
            Ok(config) => prop_assert_eq!(config.ports.len(), 1),
            Err(problems) => prop_assert!(!problems.is_empty()),
        }
    }

    #[test]
    fn any_text_of_a_file_is_taken_or_refused(
        text in "(\\[(port|profile|switch|team)(\\.[a-b])?\\]\n|[a-z_]{1,8} ?= ?[^\n]{0,9}\n|\\PC{0,9}\n){0,6}",
    ) {
        let mut problems = Vec::new();
        match File::parse(&text, "f", &mut problems) {
            Ok(file) => drop(build(&file, &Overlay::default(), &[], Path::new("/r"))),
            Err(wrong) => problems.extend(wrong),
        }
        let lines = 1 + text.matches('\n').count();
        for problem in problems {
            prop_assert!((1..=lines).contains(&problem.line()), "{}", problem);
        }
    }

    /// What is taken once is taken again: the store reads what it wrote.
    #[test]
    fn a_port_is_the_same_after_its_settings_were_saved(
        settings in proptest::collection::vec(setting(), 0..5),
    ) {
        let switches = BTreeMap::from([("default".to_owned(), SwitchConfig::default())]);
        let known = Known {
            switches: &switches,
            teams: &BTreeMap::new(),
            profiles: &BTreeMap::new(),
            ports: &BTreeMap::new(),
            run_dir: Path::new("/r"),
        };
        let port = |layer: &Layer| build_port(&[layer], known);
        let line = settings.iter().fold("p".to_owned(), |line, (k, v)| format!("{line},{k}={v}"));
        let Ok(layer) = Layer::from_line(&line) else { return Ok(()) };
        let Ok(before) = port(&layer) else { return Ok(()) };
        let saved = serde_json::to_string(&layer.to_json()).unwrap();
        let saved = serde_json::from_str(&saved).unwrap();
        let after = port(&Layer::from_json("p", Origin::Api, "", &saved).unwrap()).unwrap();
        prop_assert_eq!(
            serde_json::to_value(before).unwrap(),
            serde_json::to_value(after).unwrap()
        );
    }
}
