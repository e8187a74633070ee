//! Images: references, registries, parallel pull and unpack, overlay snapshots, import and export.
