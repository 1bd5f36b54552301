//! Owns the conditions of `--fail-if`. Pure.

use serde_json::Value;

use crate::units::{parse_count, parse_duration_with_unit};

/// Conditions on a result, any of which makes the run fail.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct FailIf(Vec<Condition>);

#[derive(Clone, PartialEq, Debug)]
struct Condition {
    text: String,
    metric: Metric,
    comparison: Comparison,
    /// In the unit of the metric in the JSON result.
    bound: f64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Comparison {
    Above,
    Below,
}

/// Where a metric is found in the JSON result.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Metric {
    LatencyUs(&'static str),
    Plain(&'static str),
}

fn metric(name: &str) -> Result<Metric, String> {
    Ok(match name {
        "p50" => Metric::LatencyUs("p50"),
        "p90" => Metric::LatencyUs("p90"),
        "p99" => Metric::LatencyUs("p99"),
        "p999" | "p99.9" => Metric::LatencyUs("p999"),
        "p9999" | "p99.99" => Metric::LatencyUs("p9999"),
        "max" => Metric::LatencyUs("max"),
        "mean" => Metric::LatencyUs("mean"),
        "rate" => Metric::Plain("msgs_per_s"),
        "mb" => Metric::Plain("mb_per_s"),
        "errors" => Metric::Plain("errors"),
        "cpu" => Metric::Plain("server_cpu_s_per_million"),
        "rss" => Metric::Plain("server_rss_mb"),
        _ => {
            return Err(format!(
                "{name:?} is no metric: use p50, p90, p99, p999, p9999, max, mean, rate, mb, errors, \
                 cpu or rss"
            ));
        }
    })
}

/// Parses `p99>20ms,rate<100k`.
pub(crate) fn parse_fail_if(text: &str) -> Result<FailIf, String> {
    text.split(',').map(|part| condition(part.trim())).collect::<Result<_, _>>().map(FailIf)
}

fn condition(text: &str) -> Result<Condition, String> {
    let at = text.find(['<', '>']).ok_or_else(|| format!("{text:?} has neither < nor >"))?;
    let (name, rest) = text.split_at(at);
    let comparison = if rest.starts_with('>') { Comparison::Above } else { Comparison::Below };
    let value = rest.get(1..).unwrap_or_default().trim();
    let metric = metric(name.trim())?;
    let bound = match metric {
        Metric::LatencyUs(_) => parse_duration_with_unit(value)?.as_secs_f64() * 1e6,
        Metric::Plain("msgs_per_s") => parse_count(value.trim_end_matches("/s"))? as f64,
        Metric::Plain(_) => value.parse().map_err(|_err| format!("{value:?} is not a number"))?,
    };
    Ok(Condition { text: text.to_owned(), metric, comparison, bound })
}

impl FailIf {
    /// The conditions that hold in a JSON result, each with the value found. A metric that the result
    /// lacks (no local server, no samples) counts as failing: a check that cannot be made has not passed.
    pub(crate) fn violated(&self, result: &Value) -> Vec<String> {
        self.0
            .iter()
            .filter_map(|condition| {
                let value = match condition.metric {
                    Metric::LatencyUs(name) => &result["latency_us"][name],
                    Metric::Plain(name) => &result[name],
                };
                let Some(value) = value.as_f64() else {
                    return Some(format!("{}: not measured", condition.text));
                };
                let holds = match condition.comparison {
                    Comparison::Above => value > condition.bound,
                    Comparison::Below => value < condition.bound,
                };
                holds.then(|| format!("{}: measured {value}", condition.text))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn conditions_compare_in_the_units_of_the_result() {
        let conditions = parse_fail_if("p99>20ms, rate<100k,cpu>1.5").expect("valid");
        let good = json!({"latency_us": {"p99": 19_000}, "msgs_per_s": 100_000.0,
                          "server_cpu_s_per_million": 1.0});
        assert!(conditions.violated(&good).is_empty());
        let bad = json!({"latency_us": {"p99": 20_001}, "msgs_per_s": 99_999.0,
                         "server_cpu_s_per_million": null});
        assert_eq!(conditions.violated(&bad).len(), 3);
    }

    #[test]
    fn unknown_metrics_and_units_are_refused() {
        for text in ["p98>1ms", "p99>20", "p99=1ms", "", "rate<fast"] {
            assert!(parse_fail_if(text).is_err(), "{text:?}");
        }
    }
}
