//! Work that many nodes do at the same time.

use std::sync::Arc;

use tokio::sync::Barrier;

/// Runs `work` concurrently, `times` times, on the nodes in turn, and returns the results.
pub(crate) async fn at_once<P, T, Fut>(
    nodes: &[Arc<P>],
    times: usize,
    work: impl Fn(Arc<P>, usize) -> Fut,
) -> Vec<T>
where
    T: Send + 'static,
    Fut: Future<Output = T> + Send + 'static,
{
    let start = Arc::new(Barrier::new(times));
    let running = (0..times).map(|n| {
        let (start, work) = (Arc::clone(&start), work(Arc::clone(&nodes[n % nodes.len()]), n));
        tokio::spawn(async move {
            start.wait().await;
            work.await
        })
    });
    let mut results = Vec::new();
    for task in running.collect::<Vec<_>>() {
        results.push(task.await.expect("a task of the case failed, see above"));
    }
    results
}
