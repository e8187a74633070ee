//! `WWW-Authenticate` -> challenges (RFC 9110, section 11.6.1). Pure, and fed by strangers: never panics.

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

/// The challenges of one header value that we can answer, in the order given.
pub(super) fn parse(header: &str) -> Vec<Challenge> {
    let mut challenges = Vec::new();
    let mut scanner = Scanner { rest: header };
    let mut scheme: Option<(String, Vec<(String, String)>)> = None;
    while let Some(word) = scanner.token() {
        if scanner.take('=') {
            let value = scanner.value();
            if let Some((_, parameters)) = &mut scheme {
                parameters.push((word.to_ascii_lowercase(), value));
            }
        } else {
            challenges.extend(scheme.take().and_then(finish));
            scheme = Some((word.to_ascii_lowercase(), Vec::new()));
        }
    }
    challenges.extend(scheme.and_then(finish));
    challenges
}

fn finish((scheme, parameters): (String, Vec<(String, String)>)) -> Option<Challenge> {
    let get = |key: &str| parameters.iter().find(|(name, _)| name == key).map(|(_, value)| value.clone());
    match scheme.as_str() {
        "basic" => Some(Challenge::Basic),
        "bearer" => Some(Challenge::Bearer { realm: get("realm")?, service: get("service"), scope: get("scope") }),
        _ => None,
    }
}

struct Scanner<'a> {
    rest: &'a str,
}

impl<'a> Scanner<'a> {
    /// Skips separators and whatever else is no token, so that nonsense ends instead of looping.
    fn token(&mut self) -> Option<&'a str> {
        let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        self.rest = self.rest.trim_start_matches(|c: char| !is_token(c));
        let end = self.rest.find(|c: char| !is_token(c)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        (!word.is_empty()).then_some(word)
    }

    fn take(&mut self, expected: char) -> bool {
        let trimmed = self.rest.trim_start();
        let found = trimmed.strip_prefix(expected);
        self.rest = found.unwrap_or(self.rest);
        found.is_some()
    }

    fn value(&mut self) -> String {
        let trimmed = self.rest.trim_start();
        let Some(quoted) = trimmed.strip_prefix('"') else {
            let end = trimmed.find([',', ' ', '\t']).unwrap_or(trimmed.len());
            let (word, rest) = trimmed.split_at(end);
            self.rest = rest;
            return word.to_owned();
        };
        let mut value = String::new();
        let mut characters = quoted.char_indices();
        while let Some((at, c)) = characters.next() {
            match c {
                '"' => {
                    self.rest = &quoted[at + 1..];
                    return value;
                }
                '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
                c => value.push(c),
            }
        }
        self.rest = "";
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        Challenge::Bearer { realm: realm.into(), service: service.map(Into::into), scope: scope.map(Into::into) }
    }

    fn check(header: &str, expect: &[Challenge]) {
        assert_eq!(parse(header), expect, "{header}");
    }

    #[test]
    fn headers() {
        check("Basic realm=\"x\"", &[Challenge::Basic]);
        check("basic", &[Challenge::Basic]);
        check(
            r#"Bearer realm="https://auth/token",service="registry",scope="repository:a/b:pull,push""#,
            &[bearer("https://auth/token", Some("registry"), Some("repository:a/b:pull,push"))],
        );
        check(r#"bearer realm = "r" , scope=s"#, &[bearer("r", None, Some("s"))]);
        check(r#"Basic realm="a, Bearer", Bearer realm="b\"c""#, &[Challenge::Basic, bearer("b\"c", None, None)]);
        check(r#"Negotiate, Bearer realm="r""#, &[bearer("r", None, None)]);
        check("Bearer scope=x", &[]);
        check("", &[]);
        check(r#"Bearer realm="unterminated"#, &[bearer("unterminated", None, None)]);
    }

    proptest! {
        #[test]
        fn never_panics(header in "\\PC{0,60}") {
            parse(&header);
        }

        #[test]
        fn quoted_values_survive(value in "[ -~&&[^\"\\\\]]{0,30}") {
            prop_assert_eq!(parse(&format!("Bearer realm=\"{value}\"")), vec![bearer(&value, None, None)]);
        }
    }
}
