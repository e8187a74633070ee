//! Rules of pod.
