//! The fields of every built-in type, from one compact table: names, protobuf numbers, list types, merge keys.
//!
//! `schema/table.tsv` is written by `cargo xtask codegen schema` and parsed once, when first asked for. A line without
//! a leading tab opens a type (name, `kind`, `atomic`); a line with one is a field (name, path of protobuf numbers, type,
//! flags). Invariant: every type that a field refers to is in the table.

pub mod check;
pub mod normal;
#[cfg(test)]
pub(crate) mod sample;

use std::collections::HashMap;
use std::sync::LazyLock;

const TABLE: &str = include_str!("schema/table.tsv");

/// A structure: `core.v1.PodSpec`.
#[derive(Debug)]
pub struct Type {
    /// The last parts of upstream's OpenAPI name: `core.v1.Pod`, `meta.v1.ObjectMeta`.
    pub name: &'static str,
    /// Has apiVersion and kind.
    pub is_kind: bool,
    /// Is replaced as a whole by server-side apply.
    pub atomic: bool,
    /// Sorted by name.
    pub fields: Vec<Field>,
}

#[derive(Debug)]
pub struct Field {
    pub name: &'static str,
    /// Protobuf numbers from the message down; more than one for a struct that JSON inlines. `[0]`: not in protobuf.
    pub numbers: Vec<u32>,
    pub kind: Kind,
    pub required: bool,
    /// The zero value differs from absence.
    pub pointer: bool,
    pub omit_empty: bool,
    pub list: ListType,
    /// The keys of a `list=map` list.
    pub keys: Vec<&'static str>,
    /// This map or struct is replaced as a whole by server-side apply.
    pub map_atomic: bool,
    /// Strategic merge: lists and maps merge instead of being replaced.
    pub patch_merge: bool,
    /// Strategic merge: keys that the patch does not name are dropped.
    pub patch_retain_keys: bool,
    pub patch_merge_key: Option<&'static str>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    Bool,
    Int32,
    Int64,
    Double,
    String,
    /// Base64 in JSON.
    Bytes,
    Quantity,
    IntOrString,
    Time,
    MicroTime,
    RawExtension,
    FieldsV1,
    /// The index of a type in the table.
    Struct(usize),
    List(Box<Kind>),
    Map(Box<Kind>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListType {
    Atomic,
    Set,
    Map,
}

struct Table {
    types: Vec<Type>,
    by_name: HashMap<&'static str, usize>,
}

static TYPES: LazyLock<Table> = LazyLock::new(parse);

impl Type {
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields.binary_search_by(|field| field.name.cmp(name)).ok().map(|index| &self.fields[index])
    }

    /// The type's name without its package: `PodSpec`.
    pub fn short_name(&self) -> &'static str {
        self.name.rsplit('.').next().unwrap_or(self.name)
    }

    /// Upstream's full name: `io.k8s.api.core.v1.PodSpec`.
    pub fn full_name(&self) -> String {
        match self.name.strip_prefix("meta.v1.") {
            Some(name) => format!("io.k8s.apimachinery.pkg.apis.meta.v1.{name}"),
            None => format!("io.k8s.api.{}", self.name),
        }
    }
}

impl Kind {
    pub fn as_struct(&self) -> Option<&'static Type> {
        match self {
            Self::Struct(index) => TYPES.types.get(*index),
            _ => None,
        }
    }

    /// The kind of a list's items or a map's values.
    pub fn inner(&self) -> Option<&Kind> {
        match self {
            Self::List(inner) | Self::Map(inner) => Some(inner),
            _ => None,
        }
    }

    /// The structure that this kind leads to, through lists and maps.
    pub fn innermost_struct(&self) -> Option<&'static Type> {
        match self {
            Self::List(inner) | Self::Map(inner) => inner.innermost_struct(),
            other => other.as_struct(),
        }
    }
}

/// Every type of the table, in its order.
pub fn types() -> &'static [Type] {
    &TYPES.types
}

/// A type by its short name: `core.v1.Pod`.
pub fn find(name: &str) -> Option<&'static Type> {
    TYPES.by_name.get(name).map(|index| &TYPES.types[*index])
}

/// The type of a kind, lists and the general kinds (`Status`, `DeleteOptions`, ...) included.
pub fn find_kind(group: &str, version: &str, kind: &str) -> Option<&'static Type> {
    let own = find(&format!("{}.{version}.{kind}", short_group(group)));
    // Upstream registers these in every group and version.
    let general = ["DeleteOptions", "WatchEvent"].contains(&kind) || (group.is_empty() || group == "meta.k8s.io");
    own.or_else(|| if general { find(&format!("meta.v1.{kind}")) } else { None })
}

/// `core`, `apps`, `rbac`: the package of a group's types.
pub fn short_group(group: &str) -> &str {
    match group {
        "" => "core",
        "meta.k8s.io" => "meta",
        other => other.split('.').next().unwrap_or(other),
    }
}

fn parse() -> Table {
    let lines = || TABLE.lines().filter(|line| !line.starts_with('#'));
    let names = lines().filter(|line| !line.starts_with('\t')).map(|line| line.split('\t').next().unwrap_or(line));
    let by_name: HashMap<&'static str, usize> = names.enumerate().map(|(index, name)| (name, index)).collect();
    let mut types: Vec<Type> = Vec::with_capacity(by_name.len());
    for line in lines() {
        let mut columns = line.split('\t');
        let first = columns.next().unwrap_or_default();
        if first.is_empty() {
            let owner = types.last_mut().expect("a field follows its type");
            owner.fields.push(parse_field(columns, &by_name));
        } else {
            let (is_kind, atomic) = (columns.next() == Some("kind"), columns.next() == Some("atomic"));
            types.push(Type { name: first, is_kind, atomic, fields: Vec::new() });
        }
    }
    for one in &mut types {
        one.fields.sort_by_key(|field| field.name);
    }
    Table { types, by_name }
}

fn parse_field(mut columns: std::str::Split<'static, char>, by_name: &HashMap<&'static str, usize>) -> Field {
    let mut next = || columns.next().expect("a field has four columns");
    let (name, numbers, kind, flags) = (next(), next(), next(), next());
    let mut field = Field {
        name,
        numbers: numbers.split('.').map(|number| number.parse().expect("a protobuf number")).collect(),
        kind: parse_kind(kind, by_name),
        required: false,
        pointer: false,
        omit_empty: false,
        list: ListType::Atomic,
        keys: Vec::new(),
        map_atomic: false,
        patch_merge: false,
        patch_retain_keys: false,
        patch_merge_key: None,
    };
    for flag in flags.split(' ') {
        match flag.split_once('=').unwrap_or((flag, "")) {
            ("required", _) => field.required = true,
            ("pointer", _) => field.pointer = true,
            ("omitempty", _) => field.omit_empty = true,
            ("list", "set") => field.list = ListType::Set,
            ("list", "map") => field.list = ListType::Map,
            ("keys", keys) => field.keys = keys.split(',').collect(),
            ("map", value) => field.map_atomic = value == "atomic",
            ("patch", value) => {
                field.patch_merge = value.contains("merge");
                field.patch_retain_keys = value.contains("retainKeys");
            }
            ("merge", key) => field.patch_merge_key = Some(key),
            _ => {}
        }
    }
    field
}

fn parse_kind(text: &str, by_name: &HashMap<&'static str, usize>) -> Kind {
    if let Some(inner) = text.strip_prefix("[]") {
        return Kind::List(Box::new(parse_kind(inner, by_name)));
    }
    if let Some(inner) = text.strip_prefix("{}") {
        return Kind::Map(Box::new(parse_kind(inner, by_name)));
    }
    match text {
        "bool" => Kind::Bool,
        "int32" => Kind::Int32,
        "int64" => Kind::Int64,
        "double" => Kind::Double,
        "string" => Kind::String,
        "bytes" => Kind::Bytes,
        "Quantity" => Kind::Quantity,
        "IntOrString" => Kind::IntOrString,
        "Time" => Kind::Time,
        "MicroTime" => Kind::MicroTime,
        "RawExtension" => Kind::RawExtension,
        "FieldsV1" => Kind::FieldsV1,
        name => Kind::Struct(*by_name.get(name).expect("a type refers to types of the table")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_merge_keys_numbers_and_list_types() {
        let spec = find("core.v1.PodSpec").unwrap();
        let containers = spec.field("containers").unwrap();
        assert_eq!((containers.numbers.as_slice(), containers.patch_merge_key), (&[2][..], Some("name")));
        assert_eq!((containers.list, containers.keys.as_slice()), (ListType::Map, &["name"][..]));
        assert!(containers.required && containers.patch_merge);
        assert_eq!(containers.kind.innermost_struct().unwrap().name, "core.v1.Container");
        let volume = find("core.v1.Volume").unwrap();
        assert_eq!(volume.field("emptyDir").unwrap().numbers, [2, 2]);
        assert!(spec.field("volumes").unwrap().patch_retain_keys);
        assert!(find("meta.v1.LabelSelector").unwrap().atomic);
        assert!(spec.field("nodeSelector").unwrap().map_atomic);
        assert!(find_kind("apps", "v1", "DeleteOptions").is_some());
        assert!(find_kind("rbac.authorization.k8s.io", "v1", "RoleList").unwrap().is_kind);
        assert!(find_kind("apps", "v1", "Pod").is_none());
    }
}
