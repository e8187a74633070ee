//! Rules of volume.
