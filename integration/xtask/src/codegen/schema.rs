//! Writes `control-plane/api/src/schema/table.tsv`: one line per field of every built-in type.
//!
//! Facts only, from two published sources: the JSON schema definitions of one Kubernetes release (names, types,
//! required, list types, merge keys) and the struct tags of its Go modules (protobuf numbers, pointers, omitempty).
//! No descriptions are taken over. Invariant: a field of a type that has a protobuf form has a number, or we fail.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde_json::Value;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// `_definitions.json` of the release, as in the wheel `kubernetes-validate`.
    #[arg(long)]
    definitions: PathBuf,
    /// The directory of the Go module `k8s.io/api`.
    #[arg(long)]
    api: PathBuf,
    /// The directory of the Go module `k8s.io/apimachinery`.
    #[arg(long)]
    apimachinery: PathBuf,
}

/// The packages that are served, as (short name, prefix in the definitions, directory below a module).
const PACKAGES: &[(&str, &str)] = &[
    ("apps.v1", "apps/v1"),
    ("authentication.v1", "authentication/v1"),
    ("authorization.v1", "authorization/v1"),
    ("autoscaling.v1", "autoscaling/v1"),
    ("autoscaling.v2", "autoscaling/v2"),
    ("batch.v1", "batch/v1"),
    ("certificates.v1", "certificates/v1"),
    ("coordination.v1", "coordination/v1"),
    ("core.v1", "core/v1"),
    ("discovery.v1", "discovery/v1"),
    ("events.v1", "events/v1"),
    ("networking.v1", "networking/v1"),
    ("node.v1", "node/v1"),
    ("policy.v1", "policy/v1"),
    ("rbac.v1", "rbac/v1"),
    ("scheduling.v1", "scheduling/v1"),
    ("storage.v1", "storage/v1"),
];
const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";
/// Types that are values to us, not structures.
const SCALARS: &[(&str, &str)] = &[
    ("io.k8s.apimachinery.pkg.api.resource.Quantity", "Quantity"),
    ("io.k8s.apimachinery.pkg.util.intstr.IntOrString", "IntOrString"),
    ("io.k8s.apimachinery.pkg.runtime.RawExtension", "RawExtension"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.Time", "Time"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime", "MicroTime"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1", "FieldsV1"),
];

/// One struct field as its Go tag tells it.
#[derive(Clone, Debug)]
struct Tag {
    /// Empty for an embedded struct.
    json: String,
    go_type: String,
    number: u32,
    omit_empty: bool,
}

/// Go structs by package (`core.v1`) and name.
type Structs = BTreeMap<(String, String), Vec<Tag>>;

pub(crate) fn generate(root: &Path, args: &Args) -> anyhow::Result<()> {
    let text = fs::read_to_string(&args.definitions).with_context(|| format!("read {}", args.definitions.display()))?;
    let definitions: Value = serde_json::from_str(&text).context("parse the definitions")?;
    let definitions = definitions.get("$defs").and_then(Value::as_object).context("no $defs among the definitions")?;
    let mut structs = Structs::new();
    for (package, folder) in PACKAGES {
        read_structs(&args.api.join(folder), package, &mut structs)?;
    }
    read_structs(&args.apimachinery.join("pkg/apis/meta/v1"), "meta.v1", &mut structs)?;

    let mut out =
        String::from("# Written by `cargo xtask codegen schema`; do not edit. See schema.rs for the columns.\n");
    for (full, definition) in definitions {
        let Some(short) = short_name(full) else { continue };
        if definition.get("properties").is_some() {
            write_type(&mut out, &short, definition, &structs)?;
        }
    }
    let target = root.join("control-plane/api/src/schema/table.tsv");
    fs::write(&target, out).with_context(|| format!("write {}", target.display()))
}

/// `core.v1.Pod` for a served type; nothing for a scalar or a type that is not served.
fn short_name(full: &str) -> Option<String> {
    if SCALARS.iter().any(|(name, _)| *name == full) {
        return None;
    }
    if let Some(name) = full.strip_prefix(META) {
        return Some(format!("meta.v1.{name}"));
    }
    let short = full.strip_prefix("io.k8s.api.")?;
    let (package, _) = short.rsplit_once('.')?;
    PACKAGES.iter().any(|(name, _)| *name == package).then(|| short.to_owned())
}

fn write_type(out: &mut String, short: &str, definition: &Value, structs: &Structs) -> anyhow::Result<()> {
    let (package, name) = short.rsplit_once('.').context("a type has a package")?;
    let tags = numbered(structs, package, name, "")?;
    let kind = definition.get("x-kubernetes-group-version-kind").is_some();
    let atomic = definition.get("x-kubernetes-map-type").and_then(Value::as_str) == Some("atomic");
    writeln!(out, "{short}\t{}\t{}", if kind { "kind" } else { "" }, if atomic { "atomic" } else { "" })?;
    let required: BTreeSet<&str> =
        definition["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let properties = definition["properties"].as_object().context("properties are a map")?;
    for (field, property) in properties {
        let type_meta = matches!(field.as_str(), "apiVersion" | "kind") && !tags.contains_key(field);
        let tag = tags.get(field);
        // The module may be newer than the definitions, never older; TypeMeta has no numbers inside a message.
        let Some((path, tag)) =
            tag.map(|(path, tag)| (path.clone(), Some(tag))).or(type_meta.then(|| ("0".into(), None)))
        else {
            bail!("{short}.{field} has no protobuf number; is the Go module older than the definitions?");
        };
        let mut flags = Vec::new();
        if required.contains(field.as_str()) {
            flags.push("required".to_owned());
        }
        if let Some(tag) = tag {
            flags.extend(tag.go_type.starts_with('*').then(|| "pointer".to_owned()));
            flags.extend(tag.omit_empty.then(|| "omitempty".to_owned()));
        }
        flags.extend(extension_flags(property));
        writeln!(out, "\t{field}\t{path}\t{}\t{}", type_text(property)?, flags.join(" "))?;
    }
    Ok(())
}

/// List type, map keys, patch strategy and merge key, as `name=value`.
fn extension_flags(property: &Value) -> Vec<String> {
    let mut flags = Vec::new();
    let text = |key: &str| property.get(key).and_then(Value::as_str);
    if let Some(list) = text("x-kubernetes-list-type") {
        flags.push(format!("list={list}"));
    }
    if let Some(keys) = property.get("x-kubernetes-list-map-keys").and_then(Value::as_array) {
        let keys: Vec<&str> = keys.iter().filter_map(Value::as_str).collect();
        flags.push(format!("keys={}", keys.join(",")));
    }
    for (name, key) in [
        ("map", "x-kubernetes-map-type"),
        ("patch", "x-kubernetes-patch-strategy"),
        ("merge", "x-kubernetes-patch-merge-key"),
    ] {
        flags.extend(text(key).map(|value| format!("{name}={value}")));
    }
    flags
}

/// `[]core.v1.Container`, `{}string`, `int32`.
fn type_text(property: &Value) -> anyhow::Result<String> {
    if let Some(reference) = property.get("$ref").and_then(Value::as_str) {
        let full = reference.trim_start_matches("#/$defs/");
        if let Some((_, scalar)) = SCALARS.iter().find(|(name, _)| *name == full) {
            return Ok((*scalar).to_owned());
        }
        return short_name(full).with_context(|| format!("{full} is referred to but not served"));
    }
    let kind = match property.get("type") {
        Some(Value::Array(list)) => list.first().and_then(Value::as_str),
        Some(other) => other.as_str(),
        None => None,
    };
    let format = property.get("format").and_then(Value::as_str);
    Ok(match (kind, format) {
        (Some("string"), Some("byte")) => "bytes".into(),
        (Some("string"), _) => "string".into(),
        (Some("boolean"), _) => "bool".into(),
        (Some("integer"), Some("int64")) => "int64".into(),
        (Some("integer"), _) => "int32".into(),
        (Some("number"), _) => "double".into(),
        (Some("array"), _) => format!("[]{}", type_text(&property["items"])?),
        (Some("object"), _) if property.get("additionalProperties").is_some() => {
            format!("{{}}{}", type_text(&property["additionalProperties"])?)
        }
        (Some("object"), _) => "RawExtension".into(),
        _ => bail!("a property of no known type: {property}"),
    })
}

/// The fields of a struct by JSON name with their path of protobuf numbers; embedded structs are entered.
fn numbered<'a>(
    structs: &'a Structs,
    package: &str,
    name: &str,
    prefix: &str,
) -> anyhow::Result<BTreeMap<String, (String, &'a Tag)>> {
    let mut fields = BTreeMap::new();
    let tags =
        structs.get(&(package.to_owned(), name.to_owned())).with_context(|| format!("no struct {package}.{name}"))?;
    for tag in tags {
        let path = format!("{prefix}{}", tag.number);
        if tag.json.is_empty() {
            fields.extend(numbered(structs, package, tag.go_type.trim_start_matches('*'), &format!("{path}."))?);
        } else {
            fields.insert(tag.json.clone(), (path, tag));
        }
    }
    Ok(fields)
}

fn read_structs(folder: &Path, package: &str, structs: &mut Structs) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if !name.ends_with(".go") || name.ends_with("_test.go") || name.contains("generated") {
            continue;
        }
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let mut current: Option<(String, Vec<Tag>)> = None;
        for line in text.lines() {
            if let Some(name) = line.strip_prefix("type ").and_then(|rest| rest.strip_suffix(" struct {")) {
                current = Some((name.to_owned(), Vec::new()));
            } else if line == "}" {
                if let Some((name, tags)) = current.take() {
                    structs.insert((package.to_owned(), name), tags);
                }
            } else if let Some((_, tags)) = &mut current {
                tags.extend(parse_field(line));
            }
        }
    }
    Ok(())
}

/// A field line with a protobuf tag; others (comments, TypeMeta, fields outside the wire form) are none.
fn parse_field(line: &str) -> Option<Tag> {
    let line = line.strip_prefix('\t')?.trim_start();
    if line.starts_with("//") {
        return None;
    }
    let (declaration, tags) = line.split_once('`')?;
    let protobuf = quoted(tags, "protobuf:\"")?;
    let number = protobuf.split(',').nth(1)?.parse().ok()?;
    let mut json = quoted(tags, "json:\"").unwrap_or_default().split(',');
    let name = json.next().unwrap_or_default().to_owned();
    let go_type = declaration.split_whitespace().last()?.to_owned();
    Some(Tag { json: name, go_type, number, omit_empty: json.any(|option| option == "omitempty") })
}

fn quoted<'a>(tags: &'a str, key: &str) -> Option<&'a str> {
    let start = tags.find(key)? + key.len();
    tags[start..].split('"').next()
}
