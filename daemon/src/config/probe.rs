//! Settings by probe: one optional table `[probes.NAME]` for each entry of the catalog.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use tickscope_common::catalog::{self, PROBES};

use super::value::parse_duration;

/// Settings of all probes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probes {
    /// `settings[p]`: of probe `p` of the catalog.
    settings: [(bool, OutlierAbove); PROBES.len()],
}

impl Default for Probes {
    fn default() -> Self {
        Self { settings: std::array::from_fn(|index| (PROBES[index].default, OutlierAbove::Auto)) }
    }
}

/// Settings of one probe, as the file has them.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    /// Whether it measures; else as the catalog says.
    enabled: Option<bool>,
    /// From which length on an observation is kept on its own, with what was going on: "auto" (the
    /// series' own tail), a duration, or "never".
    #[schemars(with = "String")]
    outlier_above: OutlierAbove,
}

/// From which length on an observation is kept on its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OutlierAbove {
    /// From the series' own tail.
    #[default]
    Auto,
    /// None is.
    Never,
    /// From this length.
    Above(Duration),
}

impl Probes {
    /// Whether probe `index` of the catalog is to measure.
    pub fn enabled(&self, index: usize) -> bool {
        self.settings[index].0
    }

    /// From which length on an observation of probe `index` is an outlier.
    pub fn outlier_above(&self, index: usize) -> OutlierAbove {
        self.settings[index].1
    }

    /// Turns on every probe, whatever the configuration says.
    pub fn enable_all(&mut self) {
        for (enabled, _) in &mut self.settings {
            *enabled = true;
        }
    }
}

impl<'de> Deserialize<'de> for OutlierAbove {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "auto" => Ok(Self::Auto),
            "never" => Ok(Self::Never),
            text => parse_duration(text)
                .map(Self::Above)
                .map_err(|error| Error::custom(format!("{error}, or \"auto\", or \"never\""))),
        }
    }
}

impl<'de> Deserialize<'de> for Probes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Tables;
        impl<'de> Visitor<'de> for Tables {
            type Value = Probes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table of probes")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Probes, A::Error> {
                let mut probes = Probes::default();
                while let Some(Index(index)) = map.next_key()? {
                    let Settings { enabled, outlier_above } = map.next_value()?;
                    let enabled = enabled.unwrap_or(PROBES[index].default);
                    probes.settings[index] = (enabled, outlier_above);
                }
                Ok(probes)
            }
        }
        deserializer.deserialize_map(Tables)
    }
}

/// Name of a probe as its index. A type of its own, so that an error stands at the key.
struct Index(usize);

impl<'de> Deserialize<'de> for Index {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        catalog::probe(&name).map(|(index, _)| Self(index)).ok_or_else(|| Error::custom(unknown(&name)))
    }
}

fn unknown(name: &str) -> String {
    let names: Vec<String> = PROBES.iter().map(|probe| format!("`{}`", probe.name)).collect();
    let (nearest, likeness) = PROBES
        .iter()
        .map(|probe| (probe.name, strsim::jaro_winkler(name, probe.name)))
        .max_by(|a, b| a.1.total_cmp(&b.1))
        .expect("the catalog is not empty");
    let hint = if likeness > 0.8 { format!(" (did you mean `{nearest}`?)") } else { String::new() };
    format!("unknown probe `{name}`{hint}, expected one of {}", names.join(", "))
}

impl JsonSchema for Probes {
    fn schema_name() -> Cow<'static, str> {
        "Probes".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let properties: serde_json::Map<String, serde_json::Value> = PROBES
            .iter()
            .map(|probe| {
                let mut schema = generator.subschema_for::<Settings>();
                schema.insert("description".into(), probe.measures.into());
                (probe.name.to_owned(), schema.into())
            })
            .collect();
        json_schema!({ "type": "object", "properties": properties, "additionalProperties": false })
    }
}
