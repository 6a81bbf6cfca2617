---@meta streamgate.metrics
-- Written by `make docs` from src/lua/api; do not edit.

---What a plugin counts. Metrics are declared while the plugin is loaded and are shown as `streamgate_plugin_<plugin>_<name>`, where a `-` of the plugin's name is a `_`; one without labels is there from the start, and specs read them with `spec.metric`. Each has at most 200 sets of labels, and what comes then counts as `other`.
---@class streamgate.Metrics
local metrics = {}

---A number that only grows; its name ends with `_total`.
---@param name string
---@param doc string
---@param labels? table
---@return streamgate.Meter
function metrics.counter(name, doc, labels) end

---A number that goes up and down.
---@param name string
---@param doc string
---@param labels? table
---@return streamgate.Meter
function metrics.gauge(name, doc, labels) end

---How values are spread over buckets, given by their upper bounds.
---@param name string
---@param doc string
---@param labels? table
---@param buckets? table
---@return streamgate.Meter
function metrics.histogram(name, doc, labels, buckets) end

return metrics
