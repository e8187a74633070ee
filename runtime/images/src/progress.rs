//! What a pull tells while it runs. Events are hints for people: losing one changes nothing.

use std::fmt;
use std::sync::Arc;

use crate::digest::Digest;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The manifest is known. `bytes` is the sum of all layers as the registry holds them.
    Resolved { manifest: Digest, layers: usize, bytes: u64 },
    /// The layer was there already.
    LayerPresent { layer: Digest },
    /// `resumed_bytes` of it were on disk from an earlier, killed pull.
    LayerStarted { layer: Digest, bytes: u64, resumed_bytes: u64 },
    /// Sent at most once per MiB; `bytes` received so far.
    LayerReceived { layer: Digest, bytes: u64 },
    /// Verified and unpacked.
    LayerDone { layer: Digest },
}

/// Where events go. Called from several threads; must not block.
#[derive(Clone, Default)]
pub struct Progress(Option<Arc<dyn Fn(Event) + Send + Sync>>);

impl Progress {
    pub fn silent() -> Self {
        Self(None)
    }

    pub fn to(sink: impl Fn(Event) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(sink)))
    }

    pub(crate) fn tell(&self, event: Event) {
        if let Some(sink) = &self.0 {
            sink(event);
        }
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Progress(..)" } else { "Progress(silent)" })
    }
}
