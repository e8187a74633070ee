//! Which form the caller wants: media type, and whether whole objects, a table, or only metadata. Pure.

use control_plane_api::Status;
use http::{HeaderMap, header};

use crate::{request::Query, status::Outcome};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Json,
    Yaml,
    Protobuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    Whole,
    Table,
    PartialMetadata,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Accept {
    pub(crate) format: Format,
    pub(crate) shape: Shape,
    /// The version of meta.k8s.io in which a table or the metadata alone is asked for.
    pub(crate) meta_version: &'static str,
    pub(crate) pretty: bool,
    /// Large bodies may be packed.
    pub(crate) gzip: bool,
}

pub(crate) const JSON: &str = "application/json";
pub(crate) const YAML: &str = "application/yaml";
pub(crate) const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const ALL: [&str; 3] = [JSON, YAML, PROTOBUF];

impl Format {
    pub(crate) fn media_type(self) -> &'static str {
        match self {
            Self::Json => JSON,
            Self::Yaml => YAML,
            Self::Protobuf => PROTOBUF,
        }
    }
}

/// A media type with its parameters: `application/json;as=Table;v=v1`.
#[derive(Debug)]
pub(crate) struct MediaType {
    pub(crate) essence: String,
    parameters: Vec<(String, String)>,
}

impl MediaType {
    pub(crate) fn parse(text: &str) -> Self {
        let mut parts = text.split(';').map(str::trim);
        let essence = parts.next().unwrap_or("").to_ascii_lowercase();
        let parameters = parts
            .filter_map(|part| part.split_once('='))
            .map(|(key, value)| (key.trim().to_ascii_lowercase(), value.trim().trim_matches('"').to_owned()))
            .collect();
        Self { essence, parameters }
    }

    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    fn quality(&self) -> f32 {
        self.parameter("q").and_then(|q| q.parse().ok()).unwrap_or(1.0)
    }

    /// What an Accept clause asks for; `None` when it cannot be served here.
    fn wanted(&self) -> Option<(Format, Shape, &'static str)> {
        let format = match self.essence.as_str() {
            JSON | "*/*" | "application/*" | "text/json" => Format::Json,
            YAML | "text/yaml" => Format::Yaml,
            PROTOBUF => Format::Protobuf,
            _ => return None,
        };
        // Dashboards of some age ask for the beta alone; it differs by its name.
        let meta_version = match self.parameter("v") {
            None | Some("v1") => "meta.k8s.io/v1",
            Some("v1beta1") => "meta.k8s.io/v1beta1",
            Some(_) => "",
        };
        let known = !meta_version.is_empty();
        let meta_group = self.parameter("g").is_none_or(|group| group == "meta.k8s.io");
        let shape = match self.parameter("as") {
            None => Shape::Whole,
            Some("Table") if known && meta_group => Shape::Table,
            Some("PartialObjectMetadata" | "PartialObjectMetadataList") if known && meta_group => {
                Shape::PartialMetadata
            }
            Some(_) => return None,
        };
        Some((format, shape, meta_version))
    }
}

/// The best clause that can be served.
pub(crate) fn accept(headers: &HeaderMap, query: &Query) -> Outcome<Accept> {
    let pretty = match query.first("pretty") {
        Some(value) => value != "false" && value != "0",
        // A person with a browser or curl; upstream does the same.
        None => headers
            .get(header::USER_AGENT)
            .and_then(|agent| agent.to_str().ok())
            .is_some_and(|agent| ["curl", "Wget", "Mozilla/5.0"].iter().any(|name| agent.starts_with(name))),
    };
    let gzip = crate::gzip::accepted(headers);
    let values: Vec<&str> = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    let mut clauses: Vec<MediaType> = values
        .iter()
        .flat_map(|value| value.split(','))
        .filter(|clause| !clause.trim().is_empty())
        .map(MediaType::parse)
        .collect();
    if clauses.is_empty() {
        return Ok(Accept { format: Format::Json, shape: Shape::Whole, meta_version: "meta.k8s.io/v1", pretty, gzip });
    }
    clauses.sort_by(|one, other| other.quality().total_cmp(&one.quality()));
    let best = clauses.iter().find_map(MediaType::wanted);
    best.map(|(format, shape, meta_version)| Accept { format, shape, meta_version, pretty, gzip })
        .ok_or_else(|| Status::not_acceptable(&ALL).into())
}

/// The media type of a body; JSON when none is named.
pub(crate) fn content_type(headers: &HeaderMap) -> MediaType {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or(JSON);
    MediaType::parse(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn picks_the_best_clause_that_can_be_served() {
        let check = |value: &str, expect: Option<(Format, Shape)>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, value.parse().unwrap());
            let found = accept(&headers, &Query::default()).ok().map(|accept| (accept.format, accept.shape));
            assert_eq!(found, expect, "{value}");
        };
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        check(table, Some((Format::Json, Shape::Table)));
        check("application/json;as=Table;v=v1beta1;g=meta.k8s.io", Some((Format::Json, Shape::Table)));
        check("application/json;as=Table;v=v2;g=meta.k8s.io,application/json", Some((Format::Json, Shape::Whole)));
        check("application/vnd.kubernetes.protobuf,application/json", Some((Format::Protobuf, Shape::Whole)));
        check("application/yaml;q=0.5, application/json;q=0.9", Some((Format::Json, Shape::Whole)));
        check(
            "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
            Some((Format::Json, Shape::PartialMetadata)),
        );
        check("*/*", Some((Format::Json, Shape::Whole)));
        check("text/html", None);
    }
}
