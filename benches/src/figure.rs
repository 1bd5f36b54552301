//! Owns figures: values of several rounds with a goal, and the table that shows them. Measures nothing.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// What a figure should be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// The median is to be this or more.
    AtLeast(f64),
    /// The median is to be this or less.
    AtMost(f64),
    /// Shown, not judged.
    None,
}

/// One measured quantity.
#[derive(Clone, Debug)]
pub struct Figure {
    name: &'static str,
    unit: &'static str,
    goal: Goal,
    values: Vec<f64>,
}

/// The figures of a campaign, in the order in which they first came.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    all: Vec<Figure>,
    by_name: BTreeMap<&'static str, usize>,
}

impl Figures {
    /// Adds one round's value.
    pub fn add(&mut self, name: &'static str, unit: &'static str, goal: Goal, value: f64) {
        let at = *self.by_name.entry(name).or_insert_with(|| {
            self.all.push(Figure { name, unit, goal, values: Vec::new() });
            self.all.len() - 1
        });
        self.all[at].values.push(value);
    }

    /// The figures as a Markdown table: median, lowest, highest, goal, and whether it was met.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = String::from(
            "| figure | median | lowest | highest | rounds | goal | met |\n|---|--:|--:|--:|--:|--:|---|\n",
        );
        for figure in &self.all {
            let (low, median, high) = figure.spread();
            let (goal, met) = match figure.goal {
                Goal::AtLeast(goal) => (format!("≥ {}", show(goal)), verdict(median >= goal)),
                Goal::AtMost(goal) => (format!("≤ {}", show(goal)), verdict(median <= goal)),
                Goal::None => (String::new(), ""),
            };
            // Writing to a string cannot fail.
            let _infallible = writeln!(
                text,
                "| {} ({}) | {} | {} | {} | {} | {goal} | {met} |",
                figure.name,
                figure.unit,
                show(median),
                show(low),
                show(high),
                figure.values.len(),
            );
        }
        text
    }
}

impl Figure {
    /// Lowest, median and highest value; there is at least one.
    fn spread(&self) -> (f64, f64, f64) {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        (sorted[0], sorted[sorted.len() / 2], sorted[sorted.len() - 1])
    }
}

fn verdict(met: bool) -> &'static str {
    if met { "yes" } else { "no" }
}

/// Whole numbers in groups of three from a hundred on, else three digits.
fn show(value: f64) -> String {
    if value < 100.0 {
        return format!("{value:.3}");
    }
    let digits = format!("{value:.0}");
    let mut grouped = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_judged_and_the_extremes_are_shown() {
        let mut figures = Figures::default();
        for value in [900_000.0, 400_000.0, 800_000.0] {
            figures.add("produce", "msg/s", Goal::AtLeast(700_000.0), value);
        }
        figures.add("cpu", "s", Goal::AtMost(1.0), 1.25);
        let table = figures.table();
        assert!(
            table.contains(
                "| produce (msg/s) | 800,000 | 400,000 | 900,000 | 3 | ≥ 700,000 | yes |"
            ),
            "{table}"
        );
        assert!(
            table.contains("| cpu (s) | 1.250 | 1.250 | 1.250 | 1 | ≤ 1.000 | no |"),
            "{table}"
        );
    }
}
