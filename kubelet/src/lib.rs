//! Pods on this node: one task per pod, a pure plan, the only caller of CRI.
