//! Exact quantities: `100m`, `1.5Gi`, `2e3`, with their canonical form.
//!
//! A value is an integer number of nano-units with the notation it was written in; no floating point anywhere.
//! Invariant: `parse(q.to_string()) == q`. Finer than nano rounds up away from zero, as upstream does.

use std::cmp::Ordering;
use std::fmt;
use std::ops::{Add, Sub};
use std::str::FromStr;

const NANO: i128 = 1_000_000_000;
/// Upstream caps a quantity at 2^63-1 units; larger ones are clamped.
const UNITS_MAX: i128 = i64::MAX as i128;

/// The notation that a quantity is printed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    DecimalSi,
    BinarySi,
    DecimalExponent,
}

/// An amount of something: cores, bytes, pods.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    nano: i128,
    format: Format,
}

/// Why a text is no quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

/// Decimal suffixes with their power of ten.
const DECIMAL: [(&str, i32); 10] =
    [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];
/// Binary suffixes with their power of two.
const BINARY: [(&str, u32); 6] = [("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40), ("Pi", 50), ("Ei", 60)];

impl Quantity {
    pub const ZERO: Self = Self { nano: 0, format: Format::DecimalSi };

    pub fn from_units(units: i64, format: Format) -> Self {
        Self { nano: i128::from(units) * NANO, format }
    }

    pub fn from_millis(millis: i64) -> Self {
        Self { nano: i128::from(millis) * (NANO / 1000), format: Format::DecimalSi }
    }

    pub fn parse(text: &str) -> Result<Self, Error> {
        let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
        let number_end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(number_end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(Error::Format);
        }
        let (ten, two, format) = scale(suffix)?;
        let nano = exact_nano(whole, fraction, ten, two);
        let nano = nano.min(UNITS_MAX * NANO);
        Ok(Self { nano: if text.starts_with('-') { -nano } else { nano }, format })
    }

    pub fn format(self) -> Format {
        self.format
    }

    pub fn is_zero(self) -> bool {
        self.nano == 0
    }

    pub fn is_negative(self) -> bool {
        self.nano < 0
    }

    /// Whole units, rounded up: bytes, pods.
    pub fn value(self) -> i64 {
        saturate(ceil_div(self.nano, NANO))
    }

    /// Thousandths, rounded up: milli-cores.
    pub fn milli_value(self) -> i64 {
        saturate(ceil_div(self.nano, NANO / 1000))
    }

    /// Whether the amount is a whole number of units.
    pub fn is_whole(self) -> bool {
        self.nano % NANO == 0
    }

    /// Whether the amount is a whole number of thousandths.
    pub fn is_whole_millis(self) -> bool {
        self.nano % (NANO / 1000) == 0
    }
}

fn saturate(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

/// Division that rounds away from zero, as upstream scales down.
fn ceil_div(value: i128, by: i128) -> i128 {
    let quotient = value / by;
    if value % by == 0 { quotient } else { quotient + value.signum() }
}

/// A suffix as (power of ten, power of two, notation).
fn scale(suffix: &str) -> Result<(i32, u32, Format), Error> {
    if let Some((_, ten)) = DECIMAL.iter().find(|(name, _)| *name == suffix) {
        return Ok((*ten, 0, Format::DecimalSi));
    }
    if let Some((_, two)) = BINARY.iter().find(|(name, _)| *name == suffix) {
        return Ok((0, *two, Format::BinarySi));
    }
    if !suffix.chars().all(|c| "eEinumkKMGTP+-0123456789".contains(c)) {
        return Err(Error::Format);
    }
    let exponent = suffix.strip_prefix(['e', 'E']).ok_or(Error::Suffix)?;
    let ten = exponent.parse::<i32>().map_err(|_| Error::Suffix)?;
    Ok((ten, 0, Format::DecimalExponent))
}

/// Digits times 10^ten times 2^two as nano-units, rounded up, saturating at the cap.
fn exact_nano(whole: &str, fraction: &str, ten: i32, two: u32) -> i128 {
    let cap = UNITS_MAX * NANO;
    let fraction = fraction.trim_end_matches('0');
    let mut digits: i128 = 0;
    let mut inexact = false;
    // 128 bits hold 36 digits, or 19 and a binary factor of up to 60 bits; more digits cannot matter below the cap.
    let digits_max = if two == 0 { 36 } else { 19 };
    let significant = format!("{whole}{fraction}");
    let significant = significant.trim_start_matches('0');
    let mut dropped: i64 = 0;
    for (index, byte) in significant.bytes().enumerate() {
        if index < digits_max {
            digits = digits * 10 + i128::from(byte - b'0');
        } else {
            dropped += 1;
            inexact |= byte != b'0';
        }
    }
    if digits == 0 {
        return 0;
    }
    let mut value = match digits.checked_mul(1_i128 << two) {
        Some(value) => value,
        None => return cap,
    };
    let mut exponent = i64::from(ten) + 9 - i64::try_from(fraction.len()).unwrap_or(i64::MAX / 2) + dropped;
    while exponent > 0 {
        match value.checked_mul(10) {
            Some(next) => value = next,
            None => return cap,
        }
        if value > cap {
            return cap;
        }
        exponent -= 1;
    }
    while exponent < 0 && value > 0 {
        inexact |= value % 10 != 0;
        value /= 10;
        exponent += 1;
    }
    (value + i128::from(inexact)).min(cap)
}

impl FromStr for Quantity {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::parse(text)
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.nano < 0 { "-" } else { "" };
        let nano = self.nano.abs();
        let below_1024 = nano < 1024 * NANO;
        // Upstream: binary notation only for whole numbers of at least 1024.
        if self.format == Format::BinarySi && !below_1024 && nano % NANO == 0 {
            let mut units = nano / NANO;
            let mut suffix = "";
            for (name, _) in BINARY {
                if units % 1024 != 0 || units == 0 {
                    break;
                }
                units /= 1024;
                suffix = name;
            }
            return write!(out, "{sign}{units}{suffix}");
        }
        if nano == 0 {
            return out.write_str("0");
        }
        let mut value = nano;
        let mut exponent = -9;
        while value % 1000 == 0 && exponent < 18 {
            value /= 1000;
            exponent += 3;
        }
        if self.format == Format::DecimalExponent {
            return if exponent == 0 { write!(out, "{sign}{value}") } else { write!(out, "{sign}{value}e{exponent}") };
        }
        let suffix = DECIMAL.iter().find(|(_, ten)| *ten == exponent).map_or("", |(name, _)| name);
        write!(out, "{sign}{value}{suffix}")
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nano == other.nano
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nano.cmp(&other.nano)
    }
}

impl Quantity {
    /// The notation of the first summand stays, unless that is zero.
    #[must_use]
    pub fn saturating_add(self, other: Self) -> Self {
        let format = if self.nano == 0 { other.format } else { self.format };
        Self { nano: self.nano.saturating_add(other.nano), format }
    }
}

impl Add for Quantity {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        self.saturating_add(other)
    }
}

impl Sub for Quantity {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        let format = if self.nano == 0 { other.format } else { self.format };
        Self { nano: self.nano.saturating_sub(other.nano), format }
    }
}

impl std::iter::Sum for Quantity {
    fn sum<I: Iterator<Item = Self>>(items: I) -> Self {
        items.fold(Self::ZERO, Add::add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn check(text: &str, canonical: &str, value: i64, milli: i64) {
        let quantity = Quantity::parse(text).unwrap();
        assert_eq!(
            (quantity.to_string().as_str(), quantity.value(), quantity.milli_value()),
            (canonical, value, milli)
        );
    }

    #[test]
    fn parses_and_prints_canonically() {
        check("100m", "100m", 1, 100);
        check("0.1", "100m", 1, 100);
        check("1.5", "1500m", 2, 1500);
        check("1.5Gi", "1536Mi", 1_610_612_736, 1_610_612_736_000);
        check("1024Ki", "1Mi", 1 << 20, (1 << 20) * 1000);
        check("1000", "1k", 1000, 1_000_000);
        check("5G", "5G", 5_000_000_000, 5_000_000_000_000);
        check("1e3", "1e3", 1000, 1_000_000);
        check("1E", "1E", 1_000_000_000_000_000_000, i64::MAX);
        check("0", "0", 0, 0);
        check("-2", "-2", -2, -2000);
        check("0.5Ki", "512", 512, 512_000);
        check("0.0000000001", "1n", 1, 1);
        check("128974848", "128974848", 128_974_848, 128_974_848_000);
        check("12345678901234567890", "9223372036854775807", i64::MAX, i64::MAX);
    }

    #[test]
    fn refuses_what_is_no_quantity() {
        for text in ["", "x", "1.2.3", "1Zi", ".", "5 G", "1ki", "--1", "1e", "1mi"] {
            assert!(Quantity::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn adds_and_compares_exactly() {
        let sum = Quantity::parse("0.1").unwrap() + Quantity::parse("0.2").unwrap();
        assert_eq!(sum, Quantity::parse("300m").unwrap());
        assert!(Quantity::parse("1Gi").unwrap() > Quantity::parse("1G").unwrap());
    }

    proptest! {
        #[test]
        fn canonical_form_keeps_the_amount_and_settles(number in 0_u64..1 << 53, fraction in 0_u32..1000,
            suffix in prop::sample::select(vec!["", "n", "u", "m", "k", "M", "Ki", "Mi", "Gi", "e2", "E-3"])) {
            let quantity = Quantity::parse(&format!("{number}.{fraction:03}{suffix}")).unwrap();
            let again = Quantity::parse(&quantity.to_string()).unwrap();
            prop_assert_eq!(quantity, again);
            // As upstream: a binary amount that is no multiple of 1024 prints as plain digits, which read back as decimal.
            let settled = Quantity::parse(&again.to_string()).unwrap();
            prop_assert_eq!(settled, again);
            prop_assert_eq!(settled.to_string(), again.to_string());
            if quantity.format() == again.format() {
                prop_assert_eq!(quantity.to_string(), again.to_string());
            }
        }
    }
}
