//! CertificateSigningRequests: who asks is the server's to say, and what was asked for does not change.

use std::collections::BTreeMap;

use control_plane_api::Object;
use serde_json::json;

use crate::authn::User;

/// Puts down who asks, whatever the request says of it.
pub(super) fn complete(request: &mut Object, user: &User) {
    request.set(&["spec", "username"], user.name.as_str());
    request.set(&["spec", "groups"], json!(user.groups));
    match user.uid.is_empty() {
        true => drop(request.remove(&["spec", "uid"])),
        false => request.set(&["spec", "uid"], user.uid.as_str()),
    }
    let extra: &BTreeMap<String, Vec<String>> = &user.extra;
    match extra.is_empty() {
        true => drop(request.remove(&["spec", "extra"])),
        false => request.set(&["spec", "extra"], json!(extra)),
    }
}

/// Nobody changes what was asked for, nor who asked.
pub(super) fn keep_on_update(request: &mut Object, live: Option<&Object>) {
    if let Some(live) = live {
        request.copy_from("spec", live);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_is_who_sent_it() {
        let spec =
            json!({"request": "x", "username": "system:masters", "uid": "1", "groups": ["g"], "extra": {"a": ["b"]}});
        let mut request = Object::from_value(json!({"spec": spec})).unwrap();
        let mut user = User::new("me", &["team"]);
        complete(&mut request, &user);
        let expect = json!({"request": "x", "username": "me", "groups": ["team", "system:authenticated"]});
        assert_eq!(request.get("spec"), Some(&expect));
        "7".clone_into(&mut user.uid);
        user.extra.insert("k".to_owned(), vec!["v".to_owned()]);
        complete(&mut request, &user);
        assert_eq!(
            (request.at(&["spec", "uid"]), request.at(&["spec", "extra"])),
            (Some(&json!("7")), Some(&json!({"k": ["v"]})))
        );
        let live = request.clone();
        request.set(&["spec", "username"], "other");
        keep_on_update(&mut request, Some(&live));
        assert_eq!(request, live);
    }
}
