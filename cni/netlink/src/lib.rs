//! Network namespaces, links, addresses, routes, nf_tables batches and conntrack over netlink.
