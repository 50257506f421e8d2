//! The description of the API: an OpenAPI document made from its types and handlers.

use std::borrow::Cow;
use std::sync::LazyLock;

use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use utoipa::openapi::schema::Schema;
use utoipa::openapi::{Ref, RefOr};
use utoipa::{OpenApi, PartialSchema, ToSchema};

use super::problem::ProblemDetails;
use super::{capture, events, migrations, ports, reports, switches, teams};
use crate::config::{Configured, PortConfig, SwitchConfig, TeamConfig};
use crate::events::Event;

/// Settings of a port as a request has them: any of the keys, `null` for one that is not set.
pub struct PortSettings;

/// Settings of a switch as a request has them: any of the keys, `null` for one that is not set.
pub(super) struct SwitchSettings;

/// Settings of a team as a request has them: any of the keys, `null` for one that is not set.
pub(super) struct TeamSettings;

/// Any of the keys of an object whose schema this is.
fn settings<T: Configured + PartialSchema>() -> RefOr<Schema> {
    let all = serde_json::to_value(T::schema()).unwrap_or_default();
    let keys = T::keys().iter().map(|key| {
        let schema = all["properties"][key.name].clone();
        (key.name.to_owned(), as_requested(schema))
    });
    let schema = json!({
        "type": "object",
        "properties": keys.collect::<serde_json::Map<_, _>>(),
        "additionalProperties": false,
    });
    // What was a schema before is one.
    serde_json::from_value(schema).unwrap_or_else(|_| Ref::new("#/components").into())
}

impl PartialSchema for PortSettings {
    fn schema() -> RefOr<Schema> {
        settings::<PortConfig>()
    }
}

impl ToSchema for PortSettings {
    fn name() -> Cow<'static, str> {
        "PortSettings".into()
    }
}

impl PartialSchema for SwitchSettings {
    fn schema() -> RefOr<Schema> {
        settings::<SwitchConfig>()
    }
}

impl ToSchema for SwitchSettings {
    fn name() -> Cow<'static, str> {
        "SwitchSettings".into()
    }
}

impl PartialSchema for TeamSettings {
    fn schema() -> RefOr<Schema> {
        settings::<TeamConfig>()
    }
}

impl ToSchema for TeamSettings {
    fn name() -> Cow<'static, str> {
        "TeamSettings".into()
    }
}

/// The same schema, and null, and for a list text as well.
fn as_requested(mut schema: Value) -> Value {
    match schema.get("type").cloned() {
        Some(Value::String(kind)) if kind == "array" => {
            schema["type"] = json!([kind, "string", "null"]);
        }
        Some(Value::String(kind)) => schema["type"] = json!([kind, "null"]),
        Some(_) => {}
        None => schema = json!({"oneOf": [{"type": "null"}, schema]}),
    }
    schema
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Tandem",
        description = "Tandem's daemon, on its unix socket. Errors are problem details (RFC 9457)."
    ),
    components(schemas(ProblemDetails, Event)),
    paths(
        document,
        reports::status,
        events::stream,
        ports::list,
        ports::show,
        ports::put,
        ports::patch,
        ports::remove,
        ports::reset,
        capture::capture,
        switches::list,
        switches::show,
        switches::put,
        switches::patch,
        switches::remove,
        switches::reset,
        teams::list,
        teams::show,
        teams::put,
        teams::patch,
        teams::remove,
        teams::reset,
        migrations::list,
        migrations::show,
        migrations::prepare,
        migrations::commit,
        migrations::abort,
        reports::profiles,
        reports::vms,
        reports::vm,
        reports::metrics,
    )
)]
struct Document;

static TEXT: LazyLock<String> = LazyLock::new(|| {
    let mut document = serde_json::to_value(Document::openapi()).unwrap_or_default();
    let paths = document["paths"].as_object_mut().into_iter();
    let paths = paths.flat_map(|paths| paths.values_mut());
    for path in paths.filter_map(Value::as_object_mut) {
        for (method, operation) in path {
            describe(method, operation);
        }
    }
    drop_formats(&mut document);
    format!("{document:#}\n")
});

/// Adds what all operations of a kind have in common.
fn describe(method: &str, operation: &mut Value) {
    let named = operation["parameters"]
        .as_array()
        .is_some_and(|all| all.iter().any(|one| one["in"] == "path"));
    let changes = method != "get";
    let statuses = [
        (named || changes, "400", "The request is wrong"),
        (
            named && method != "put",
            "404",
            "There is none of that name",
        ),
        (changes, "409", "It contradicts something that exists"),
        (changes, "412", "The condition is not met"),
        (true, "default", "Another refusal or failure"),
    ];
    for (_, status, words) in statuses.iter().filter(|(has, ..)| *has) {
        let schema = json!({"$ref": "#/components/schemas/ProblemDetails"});
        operation["responses"][*status] = json!({
            "description": words,
            "content": {"application/problem+json": {"schema": schema}},
        });
    }
    // None is as good as an empty object.
    if let Some(body) = operation.get_mut("requestBody") {
        body["required"] = json!(false);
        if method == "patch" {
            let settings = body["content"]["application/json"].clone();
            body["content"]["application/merge-patch+json"] = settings;
        }
    }
}

/// Numbers are as large as their limits say: `int32` would cut the range of an unsigned one.
fn drop_formats(value: &mut Value) {
    match value {
        Value::Object(members) => {
            let width = |format: &Value| matches!(format.as_str(), Some("int32" | "int64"));
            if members.get("format").is_some_and(width) {
                members.remove("format");
            }
            members.values_mut().for_each(drop_formats);
        }
        Value::Array(values) => values.iter_mut().for_each(drop_formats),
        _ => {}
    }
}

/// This document.
#[utoipa::path(
    get,
    path = "/api/v1/openapi.json",
    tag = "status",
    responses((status = 200, body = Object, description = "An OpenAPI document"))
)]
pub(super) async fn document() -> Response {
    let kind = [(header::CONTENT_TYPE, "application/json")];
    (kind, TEXT.as_str()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Kind, Layer, Origin, build_over};

    fn document() -> Value {
        serde_json::from_str(&TEXT).unwrap()
    }

    /// Whether the daemon takes one setting, with what it takes beside it, of one that begins so.
    fn is_taken<T: Configured>(start: &T, key: &str, value: Value) -> bool {
        let switches = [("default".to_owned(), SwitchConfig::default())].into();
        let known = crate::config::Known {
            switches: &switches,
            teams: &Default::default(),
            profiles: &Default::default(),
            ports: &Default::default(),
            run_dir: std::path::Path::new("/r"),
        };
        let settings = json!({key: value}).as_object().cloned().unwrap_or_default();
        let layer = Layer::<T>::from_json("a", Origin::Api, "", &settings);
        let wrong = match layer.and_then(|layer| build_over(start.clone(), &layer, known)) {
            Ok(_) => return true,
            Err(problems) => problems,
        };
        // Not what it lacks beside it.
        let lacks = [
            "there is no profile",
            "only a trunk",
            "a team has at least one member",
            "only LACP",
            "there are no probes",
            "the switch has no uplink",
        ];
        wrong.iter().all(|problem| {
            let reason = &problem.refused.reason;
            key != "members" && lacks.iter().any(|words| reason.contains(words))
        })
    }

    fn limits_are_the_daemons<T: Configured>(object: &str, start: &T) {
        let settings = &document()["components"]["schemas"][object]["properties"];
        let is_taken = |key, value| is_taken(start, key, value);
        for key in T::keys() {
            let schema = &settings[key.name];
            assert!(schema.is_object(), "{}", key.name);
            if key.kind == Kind::Number {
                let limit = |name: &str| schema[name].as_u64().unwrap();
                let (least, most) = (limit("minimum"), limit("maximum"));
                assert!(is_taken(key.name, json!(least)) && is_taken(key.name, json!(most)));
                assert!(!is_taken(key.name, json!(most + 1)), "{}", key.name);
                assert!(least == 0 || !is_taken(key.name, json!(least - 1)));
            }
            // A team cannot be without.
            let is_required = key.name == "members";
            assert_eq!(
                is_taken(key.name, Value::Null),
                !is_required,
                "{}",
                key.name
            );
            let kinds = schema["type"].as_array().cloned().unwrap_or_default();
            for value in [
                json!(true),
                json!(1.5),
                json!([]),
                json!({}),
                json!("\u{0}"),
            ] {
                let is_bool = value.is_boolean() && kinds.contains(&json!("boolean"));
                assert_eq!(is_taken(key.name, value), is_bool, "{}", key.name);
            }
        }
    }

    #[test]
    fn limits_in_the_document_are_the_daemons() {
        limits_are_the_daemons("PortSettings", &PortConfig::new("a"));
        limits_are_the_daemons("SwitchSettings", &SwitchConfig::default());
        limits_are_the_daemons("TeamSettings", &TeamConfig::default());
        let members = &document()["components"]["schemas"]["TeamSettings"]["properties"]["members"];
        assert_eq!(members["type"], json!(["array", "string", "null"]));
    }

    #[test]
    fn all_references_in_the_document_lead_somewhere() {
        fn references<'a>(value: &'a Value, all: &mut Vec<&'a str>) {
            match value {
                Value::Object(members) => {
                    all.extend(members.get("$ref").and_then(Value::as_str));
                    members.values().for_each(|value| references(value, all));
                }
                Value::Array(values) => values.iter().for_each(|value| references(value, all)),
                _ => {}
            }
        }
        let document = document();
        let mut all = Vec::new();
        references(&document, &mut all);
        assert!(all.len() > 20);
        for reference in all {
            let place = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(place).is_some(), "{reference}");
        }
    }
}
