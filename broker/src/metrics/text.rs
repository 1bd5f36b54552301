//! Owns the Prometheus text format: how a series is written. Never knows which series there are.
//!
//! Driven by the table of metrics. Format: text exposition format 0.0.4.

use std::fmt::{Display, Write as _};

/// What a metric is to Prometheus.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Only rises, and starts again at 0 with the process.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts in buckets, with a sum.
    Histogram,
}

impl Kind {
    /// The word of the format.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// Writes the series of one metric.
pub(crate) struct Series<'a> {
    pub(crate) out: &'a mut String,
    pub(crate) name: &'static str,
}

impl Series<'_> {
    /// The only series of a metric without labels; none when there is no value.
    pub(crate) fn value(&mut self, value: impl Into<Option<f64>>) {
        if let Some(value) = value.into() {
            let _ = writeln!(self.out, "{} {}", self.name, Number(value));
        }
    }

    /// The same for a whole number.
    pub(crate) fn count(&mut self, value: impl Into<Option<u64>>) {
        if let Some(value) = value.into() {
            let _ = writeln!(self.out, "{} {value}", self.name);
        }
    }

    /// One series of several, told apart by a label.
    pub(crate) fn labelled(&mut self, label: &str, word: &str, value: u64) {
        let _ = writeln!(self.out, "{}{{{label}=\"{}\"}} {value}", self.name, Escaped(word));
    }

    /// One series of several, told apart by several labels.
    pub(crate) fn of(&mut self, labels: &[(&str, &str)], value: f64) {
        let _ = write!(self.out, "{}", self.name);
        for (at, (label, word)) in labels.iter().enumerate() {
            let open = if at == 0 { '{' } else { ',' };
            let _ = write!(self.out, "{open}{label}=\"{}\"", Escaped(word));
        }
        let close = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.out, "{close} {}", Number(value));
    }

    /// A histogram from counts per bucket (not cumulative) and the upper bound of each; the last bucket
    /// has no bound.
    pub(crate) fn histogram(&mut self, bounds: &[f64], counts: &[u64], sum: f64) {
        let mut total = 0;
        for (at, count) in counts.iter().enumerate() {
            total += count;
            match bounds.get(at) {
                Some(bound) => {
                    let bound = Number(*bound);
                    let _ = writeln!(self.out, "{}_bucket{{le=\"{bound}\"}} {total}", self.name);
                }
                None => break,
            }
        }
        let total: u64 = counts.iter().sum();
        let _ = writeln!(self.out, "{}_bucket{{le=\"+Inf\"}} {total}", self.name);
        let _ = writeln!(self.out, "{}_sum {}", self.name, Number(sum));
        let _ = writeln!(self.out, "{}_count {total}", self.name);
    }
}

struct Number(f64);

impl Display for Number {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_infinite() {
            return f.write_str(if self.0 > 0.0 { "+Inf" } else { "-Inf" });
        }
        self.0.fmt(f)
    }
}

struct Escaped<'a>(&'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for c in self.0.chars() {
            match c {
                '\\' => f.write_str("\\\\")?,
                '"' => f.write_str("\\\"")?,
                '\n' => f.write_str("\\n")?,
                _ => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_written_cumulatively() {
        let mut out = String::new();
        Series { out: &mut out, name: "x_seconds" }.histogram(&[0.001, 0.01], &[1, 2, 4], 0.5);
        assert_eq!(
            out,
            "x_seconds_bucket{le=\"0.001\"} 1\nx_seconds_bucket{le=\"0.01\"} 3\n\
             x_seconds_bucket{le=\"+Inf\"} 7\nx_seconds_sum 0.5\nx_seconds_count 7\n"
        );
    }

    #[test]
    fn words_are_escaped_and_missing_values_left_out() {
        let mut out = String::new();
        let mut series = Series { out: &mut out, name: "x" };
        series.labelled("a", "q\"\\\n", 1);
        series.value(None);
        series.count(None);
        assert_eq!(out, "x{a=\"q\\\"\\\\\\n\"} 1\n");
    }
}
