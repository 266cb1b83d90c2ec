//! Makes metrics, registers them, and keeps what the documentation says of each.

use prometheus::core::{Collector, Desc};
use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};
use std::cell::RefCell;

/// What the documentation says of a metric; see [`describe_metrics`](crate::account::describe_metrics).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetricDescription {
    /// The name, without the suffixes of a histogram's series.
    pub name: String,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// The names of its labels, in the order of the alphabet.
    pub labels: Vec<String>,
    /// The text of its HELP line.
    pub help: String,
}

/// Makes metrics and registers them at once.
pub(in crate::account) struct Maker {
    pub(super) registry: Registry,
    pub(super) described: RefCell<Vec<MetricDescription>>,
}

impl Maker {
    pub(super) fn new() -> Maker {
        Maker { registry: Registry::new(), described: RefCell::default() }
    }

    /// Registers a metric of this kind, a word of the text format.
    pub(in crate::account) fn register<T: Collector + Clone + 'static>(
        &self,
        kind: &'static str,
        metric: T,
    ) -> Result<T, prometheus::Error> {
        self.registry.register(Box::new(metric.clone()))?;
        let describe = |desc: &Desc| {
            let mut labels = desc.variable_labels.clone();
            labels.sort();
            MetricDescription { name: desc.fq_name.clone(), kind, labels, help: desc.help.clone() }
        };
        self.described.borrow_mut().extend(metric.desc().into_iter().map(describe));
        Ok(metric)
    }

    pub(super) fn counters(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec, prometheus::Error> {
        self.register("counter", IntCounterVec::new(Opts::new(name, help), labels)?)
    }

    pub(in crate::account) fn gauges(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<IntGaugeVec, prometheus::Error> {
        self.register("gauge", IntGaugeVec::new(Opts::new(name, help), labels)?)
    }

    pub(super) fn counter(&self, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
        self.register("counter", IntCounter::new(name, help)?)
    }

    pub(in crate::account) fn gauge(&self, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
        self.register("gauge", IntGauge::new(name, help)?)
    }

    pub(super) fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Result<Histogram, prometheus::Error> {
        self.register("histogram", Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec()))?)
    }
}
