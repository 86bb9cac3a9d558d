//! Which texts are ISO 8601 dates and times that PostgreSQL reads the same under every DateStyle.
//!
//! In: text. Out: yes or no. What must hold: yes is never said to a text that depends on a setting or on the moment it is
//! read (`01/02/2025`, `now`).

/// `2025-12-31`, or `infinity`.
pub fn is_date(text: &str) -> bool {
    is_infinity(text) || is_calendar_date(text)
}

/// A date, `T` or a space, a time; `infinity`; or a date alone.
pub fn is_timestamp(text: &str) -> bool {
    is_date(text)
        || text
            .split_once(['T', 't', ' '])
            .is_some_and(|(date, time)| is_calendar_date(date) && is_time(time))
}

/// `23:59`, `23:59:59.999`, with or without an offset (`Z`, `+01`, `-05:30`).
pub fn is_time(text: &str) -> bool {
    let (time, offset) = match text.find(['Z', 'z', '+', '-']) {
        Some(at) => text.split_at(at),
        None => (text, "Z"),
    };
    is_clock(time, 24, true) && is_offset(offset)
}

fn is_infinity(text: &str) -> bool {
    matches!(text, "infinity" | "-infinity")
}

fn is_calendar_date(text: &str) -> bool {
    let mut parts = text.split('-');
    let (Some(year), Some(month), Some(day), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    if !(4..=6).contains(&year.len()) {
        return false;
    }
    let (Some(year), Some(month), Some(day)) = (number(year), two_digits(month), two_digits(day))
    else {
        return false;
    };
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        4 | 6 | 9 | 11 => 30,
        2 if is_leap => 29,
        2 => 28,
        1..=12 => 31,
        _ => return false,
    };
    // PostgreSQL: "Date/Time Types", the last timestamp is in the year 294276.
    (1..=294_276).contains(&year) && (1..=days).contains(&day)
}

fn is_offset(text: &str) -> bool {
    let Some(clock) = text.strip_prefix(['+', '-']) else {
        return matches!(text, "Z" | "z");
    };
    match clock.len() {
        2 => two_digits(clock).is_some_and(|hours| hours <= 15),
        4 => clock
            .split_at_checked(2)
            .is_some_and(|(hours, minutes)| is_clock(&format!("{hours}:{minutes}"), 15, false)),
        _ => is_clock(clock, 15, false),
    }
}

/// `hh:mm` or `hh:mm:ss`, with a fraction where it may have one.
fn is_clock(text: &str, hours_max: u32, may_have_fraction: bool) -> bool {
    let (text, fraction) = match text.split_once('.') {
        Some((text, fraction)) if may_have_fraction && text.len() == 8 => (text, fraction),
        Some(_) => return false,
        None => (text, "0"),
    };
    let parts: Option<Vec<u32>> = text.split(':').map(two_digits).collect();
    let (hours, minutes, seconds) = match parts.as_deref() {
        Some(&[hours, minutes]) => (hours, minutes, 0),
        Some(&[hours, minutes, seconds]) => (hours, minutes, seconds),
        _ => return false,
    };
    let Some(fraction) = number(fraction) else {
        return false;
    };
    // A second 60 is read as the next minute; 24:00:00 is the last moment of a day.
    let is_past_the_day = hours == 24 && (minutes, seconds, fraction) != (0, 0, 0);
    hours <= hours_max && minutes < 60 && seconds <= 60 && !is_past_the_day
}

fn two_digits(text: &str) -> Option<u32> {
    number(text).filter(|_| text.len() == 2)
}

/// Digits only, at most nine of them.
fn number(text: &str) -> Option<u32> {
    let is_number = text.len() <= 9 && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| is_number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iso_dates_and_times_are_known() {
        for text in [
            "2025-12-31",
            "2000-02-29",
            "0001-01-01",
            "12025-01-01",
            "infinity",
        ] {
            assert!(is_date(text), "{text}");
        }
        for text in [
            "2025-12-31T23:59:59Z",
            "2025-12-31 23:59:59.123456+00",
            "2025-12-31T23:59-05:30",
            "2025-12-31T23:59:60+0530",
            "2025-12-31T24:00:00Z",
            "2025-12-31",
            "-infinity",
        ] {
            assert!(is_timestamp(text), "{text}");
        }
        assert!(is_time("00:00") && is_time("23:59:59.5+01"));
    }

    #[test]
    fn everything_else_is_not() {
        for text in [
            "",
            "now",
            "today",
            "01/02/2025",
            "2025-2-3",
            "2025-13-01",
            "2025-00-01",
            "2025-04-31",
            "1900-02-29",
            "2025-01-01x",
            "25-01-01",
            "0000-01-01",
            "+2025-01-01",
            "2025-01",
        ] {
            assert!(!is_date(text), "{text}");
        }
        for text in [
            "2025-12-31T",
            "2025-12-31T25:00",
            "2025-12-31T23:60",
            "2025-12-31T2:00",
            "2025-12-31T23:59:61",
            "2025-12-31T23:59.5",
            "2025-12-31T23:59:59.",
            "2025-12-31T24:01",
            "2025-12-31T23:59+1",
            "2025-12-31T23:59+16",
            "2025-12-31T23:59 CET",
            "2025-12-31 23:59:59Zx",
            "2025-12-31T24:00:00.5",
        ] {
            assert!(!is_timestamp(text), "{text}");
        }
    }
}
