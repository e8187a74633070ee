//! The node's service networking: Services and EndpointSlices to nf_tables elements, cluster DNS.
