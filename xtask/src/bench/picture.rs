//! Curves as a picture: both axes logarithmic, one line for each contender.

use std::fmt::Write;

/// Cost against count, of several contenders.
pub(crate) struct Curves {
    pub(crate) title: String,
    /// What the counts count.
    pub(crate) counted: String,
    /// The unit of the values.
    pub(crate) unit: &'static str,
    pub(crate) counts: Vec<u64>,
    /// Each with a value above zero for each count.
    pub(crate) lines: Vec<(String, Vec<f64>)>,
}

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 420.0;
/// Around the field: left, right, above and below.
const MARGINS: [f64; 4] = [70.0, 190.0, 40.0, 50.0];
/// Colours that people who see fewer of them tell apart (Okabe and Ito, 2008).
const COLOURS: [&str; 6] = [
    "#d55e00", "#e69f00", "#0072b2", "#009e73", "#cc79a7", "#000000",
];

/// Powers of ten from the one at or below `low` to the one at or above `high`.
fn decades(low: f64, high: f64) -> Vec<f64> {
    let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
    (first..=last.max(first + 1))
        .map(|power| 10_f64.powi(power))
        .collect()
}

/// A logarithmic axis between two places of the picture.
struct Axis {
    marks: Vec<f64>,
    from: f64,
    to: f64,
}

impl Axis {
    fn new(values: impl Iterator<Item = f64> + Clone, from: f64, to: f64) -> Self {
        let low = values.clone().fold(f64::INFINITY, f64::min);
        let high = values.fold(0.0, f64::max);
        let marks = decades(low, high);
        Self { marks, from, to }
    }

    fn at(&self, value: f64) -> f64 {
        let (low, high) = (
            self.marks[0].log10(),
            self.marks[self.marks.len() - 1].log10(),
        );
        self.from + (value.log10() - low) / (high - low) * (self.to - self.from)
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

impl Curves {
    /// The picture, as SVG.
    pub(crate) fn svg(&self) -> String {
        let [left, right, above, below] = MARGINS;
        let counts = self.counts.iter().map(|&count| count as f64);
        let values = self
            .lines
            .iter()
            .flat_map(|(_, values)| values.iter().copied());
        let across = Axis::new(counts, left, WIDTH - right);
        let up = Axis::new(values, HEIGHT - below, above);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
             font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n\
             <text x=\"{left}\" y=\"22\" font-size=\"15\">{}</text>\n",
            escape(&self.title)
        );
        for &mark in &across.marks {
            let (x, to) = (across.at(mark), HEIGHT - below);
            let _ = writeln!(
                svg,
                "<path d=\"M{x:.1} {above}V{to}\" stroke=\"#ddd\"/>\
                 <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{mark}</text>",
                to + 16.0
            );
        }
        for &mark in &up.marks {
            let (y, to) = (up.at(mark), WIDTH - right);
            let _ = writeln!(
                svg,
                "<path d=\"M{left} {y:.1}H{to}\" stroke=\"#ddd\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{mark} {}</text>",
                left - 6.0,
                y + 4.0,
                self.unit
            );
        }
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            (left + WIDTH - right) / 2.0,
            HEIGHT - 12.0,
            escape(&self.counted)
        );
        for (nth, line) in self.lines.iter().enumerate() {
            self.draw(&mut svg, nth, line, (&across, &up));
        }
        svg.push_str("</svg>\n");
        svg
    }

    fn draw(&self, svg: &mut String, nth: usize, line: &(String, Vec<f64>), axes: (&Axis, &Axis)) {
        let colour = COLOURS[nth % COLOURS.len()];
        let points: Vec<String> = (self.counts.iter().zip(&line.1))
            .map(|(&count, &value)| {
                format!("{:.1},{:.1}", axes.0.at(count as f64), axes.1.at(value))
            })
            .collect();
        let (x, y) = (
            WIDTH - MARGINS[1] + 14.0,
            MARGINS[2] + 10.0 + 20.0 * nth as f64,
        );
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\n\
             <path d=\"M{x} {y}h18\" stroke=\"{colour}\" stroke-width=\"2\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            points.join(" "),
            x + 24.0,
            y + 4.0,
            escape(&line.0)
        );
    }

    /// The header and the rows of a table: a row for each count.
    pub(crate) fn table(&self, shown: impl Fn(f64) -> String) -> Vec<Vec<String>> {
        let names = self
            .lines
            .iter()
            .map(|(name, _)| format!("{name}, {}", self.unit));
        let mut table = vec![
            core::iter::once(self.counted.clone())
                .chain(names)
                .collect(),
        ];
        for (at, count) in self.counts.iter().enumerate() {
            let values = self.lines.iter().map(|(_, values)| shown(values[at]));
            table.push(core::iter::once(count.to_string()).chain(values).collect());
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_has_a_line_with_a_point_for_each_count() {
        let curves = Curves {
            title: "cost & count".to_owned(),
            counted: "things".to_owned(),
            unit: "ns",
            counts: vec![1, 1000],
            lines: vec![
                ("a".to_owned(), vec![10.0, 100.0]),
                ("b<c".to_owned(), vec![1.0, 10.0]),
            ],
        };
        let svg = curves.svg();
        assert_eq!(svg.matches("<polyline").count(), 2);
        // From the lowest left to the highest right, and from corner to corner where it fits.
        assert!(svg.contains("points=\"70.0,205.0 530.0,40.0\""), "{svg}");
        assert!(svg.contains("points=\"70.0,370.0 530.0,205.0\""), "{svg}");
        assert!(svg.contains("b&lt;c") && svg.contains("cost &amp; count"));
        let table = curves.table(|value| value.to_string());
        assert_eq!(
            table,
            [
                vec!["things", "a, ns", "b<c, ns"],
                vec!["1", "10", "1"],
                vec!["1000", "100", "10"]
            ]
        );
    }
}
