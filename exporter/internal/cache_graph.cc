#include "exporter/internal/cache_graph.h"

#include <algorithm>
#include <map>
#include <string>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace lazyblob::exporter {
namespace internal {
namespace {

bool InRange(int index, size_t size) { return index >= 0 && static_cast<size_t>(index) < size; }

absl::Status CheckLayers(const Cache& cache) {
  // 0: not seen, 1: below the layer that is being looked at, 2: fine.
  std::vector<char> state(cache.layers.size(), 0);
  for (size_t i = 0; i < cache.layers.size(); ++i) {
    std::vector<size_t> chain;
    for (int at = static_cast<int>(i); at != -1; at = cache.layers[static_cast<size_t>(at)].parent) {
      if (!InRange(at, cache.layers.size())) {
        return absl::InvalidArgumentError(
            absl::StrCat("cache layer ", i, ": parent ", at, " is out of range"));
      }
      const size_t layer = static_cast<size_t>(at);
      if (state[layer] == 2) break;
      if (state[layer] == 1)
        return absl::InvalidArgumentError(absl::StrCat("cache layer ", i, ": parents in a loop"));
      state[layer] = 1;
      chain.push_back(layer);
    }
    for (const size_t layer : chain) state[layer] = 2;
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckGraph(const Cache& cache) {
  RETURN_IF_ERROR(CheckLayers(cache));
  for (size_t i = 0; i < cache.records.size(); ++i) {
    for (const CacheResult& result : cache.records[i].results) {
      if (InRange(result.layer, cache.layers.size())) continue;
      return absl::InvalidArgumentError(
          absl::StrCat("cache record ", i, ": layer ", result.layer, " is out of range"));
    }
    for (const std::vector<CacheLink>& input : cache.records[i].inputs) {
      if (input.empty())
        return absl::InvalidArgumentError(absl::StrCat("cache record ", i, ": an input has no links"));
      for (const CacheLink& link : input) {
        if (InRange(link.record, cache.records.size())) continue;
        return absl::InvalidArgumentError(
            absl::StrCat("cache record ", i, ": link ", link.record, " is out of range"));
      }
    }
  }
  return InOrder(cache).status();
}

std::vector<base::Digest> ChainOf(const Cache& cache, int layer) {
  std::vector<base::Digest> chain;
  for (; layer >= 0; layer = cache.layers[static_cast<size_t>(layer)].parent) {
    chain.push_back(cache.layers[static_cast<size_t>(layer)].blob);
  }
  std::reverse(chain.begin(), chain.end());
  return chain;
}

absl::StatusOr<std::vector<size_t>> InOrder(const Cache& cache) {
  std::vector<size_t> waits(cache.records.size(), 0);  // for how many links
  std::vector<std::vector<size_t>> linked_by(cache.records.size());
  for (size_t i = 0; i < cache.records.size(); ++i) {
    for (const std::vector<CacheLink>& input : cache.records[i].inputs) {
      for (const CacheLink& link : input) {
        linked_by[static_cast<size_t>(link.record)].push_back(i);
        ++waits[i];
      }
    }
  }
  std::vector<size_t> order;
  for (size_t i = 0; i < waits.size(); ++i) {
    if (waits[i] == 0) order.push_back(i);
  }
  for (size_t next = 0; next < order.size(); ++next) {
    for (const size_t record : linked_by[order[next]]) {
      if (--waits[record] == 0) order.push_back(record);
    }
  }
  if (order.size() == waits.size()) return order;
  return absl::InvalidArgumentError("cache records link to each other in a loop");
}

namespace {

// Finds equal layers and records and gives each its place.
class Normalizer {
 public:
  explicit Normalizer(const Cache& cache) : cache_(cache) {}

  absl::StatusOr<Cache> Run() {
    RETURN_IF_ERROR(CheckGraph(cache_));
    ASSIGN_OR_RETURN(order_, InOrder(cache_));
    MarkWanted();
    for (const size_t record : order_) {
      if (wanted_[record]) AddRecord(record);
    }
    PlaceRecords();
    PlaceLayers();
    for (const CacheLayer& layer : result_.layers) {
      const auto blob = cache_.blobs.find(layer.blob);
      if (blob != cache_.blobs.end()) result_.blobs.insert(*blob);
    }
    for (const CacheLayer& layer : result_.layers) {
      if (result_.blobs.contains(layer.blob)) continue;
      return absl::InvalidArgumentError(
          absl::StrCat("cache layer ", layer.blob.ToString(), " has no descriptor"));
    }
    return std::move(result_);
  }

 private:
  struct Merged {
    CacheRecord record;                                                      // without links and results
    std::vector<std::map<std::pair<std::string, std::string>, int>> inputs;  // (id, selector)
    std::map<std::vector<std::string>, std::string> results;                 // chain, created_at
    int place = 0;
  };

  // Records with results, and what they link to.
  void MarkWanted() {
    wanted_.assign(cache_.records.size(), false);
    for (auto record = order_.rbegin(); record != order_.rend(); ++record) {
      if (!cache_.records[*record].results.empty()) wanted_[*record] = true;
      if (!wanted_[*record]) continue;
      for (const std::vector<CacheLink>& input : cache_.records[*record].inputs) {
        for (const CacheLink& link : input) wanted_[static_cast<size_t>(link.record)] = true;
      }
    }
  }

  void AddRecord(size_t index) {
    const CacheRecord& record = cache_.records[index];
    Merged merged;
    merged.record.digest = record.digest;
    std::string text = absl::StrCat(record.digest.size(), ":", record.digest);
    for (const std::vector<CacheLink>& input : record.inputs) {
      std::map<std::pair<std::string, std::string>, int> links;
      for (const CacheLink& link : input) links[{ids_[link.record], link.selector}] = 0;
      absl::StrAppend(&text, "|");
      for (const auto& [link, unused] : links) {
        absl::StrAppend(&text, link.first, link.second.size(), ":", link.second, ",");
      }
      merged.inputs.push_back(std::move(links));
    }
    const std::string id = base::Digest::Of(text).hex();
    ids_[static_cast<int>(index)] = id;
    Merged& place = merged_.try_emplace({record.digest, id}, std::move(merged)).first->second;
    for (const CacheResult& result : record.results) {
      std::vector<std::string> chain;
      for (const base::Digest& blob : ChainOf(cache_, result.layer)) {
        chain.push_back(blob.ToString());
        chains_.emplace(chain, 0);
      }
      std::string& created_at = place.results[chain];
      created_at = std::max(created_at, result.created_at);
    }
  }

  void PlaceRecords() {
    int next = 0;
    std::map<std::string, int> places;
    for (auto& [key, merged] : merged_) places[key.second] = next++;
    for (auto& [key, merged] : merged_) {
      for (const auto& input : merged.inputs) {
        std::vector<CacheLink> links;
        for (const auto& [link, unused] : input) links.push_back({link.second, places[link.first]});
        std::sort(links.begin(), links.end(), [](const CacheLink& a, const CacheLink& b) {
          return std::tie(a.record, a.selector) < std::tie(b.record, b.selector);
        });
        merged.record.inputs.push_back(std::move(links));
      }
    }
  }

  // By blob, then by what is below.
  void PlaceLayers() {
    std::vector<std::vector<std::string>> sorted;
    for (const auto& [chain, unused] : chains_) sorted.push_back(chain);
    std::sort(sorted.begin(), sorted.end(),
              [](const auto& a, const auto& b) { return std::tie(a.back(), a) < std::tie(b.back(), b); });
    for (size_t i = 0; i < sorted.size(); ++i) chains_[sorted[i]] = static_cast<int>(i);
    for (std::vector<std::string> chain : sorted) {
      CacheLayer layer;
      layer.blob = base::Digest::Parse(chain.back()).value();
      chain.pop_back();
      layer.parent = chain.empty() ? -1 : chains_[chain];
      result_.layers.push_back(layer);
    }
    for (auto& [key, merged] : merged_) {
      for (const auto& [chain, created_at] : merged.results) {
        merged.record.results.push_back({chains_[chain], created_at});
      }
      std::sort(merged.record.results.begin(), merged.record.results.end());
      result_.records.push_back(std::move(merged.record));
    }
  }

  const Cache& cache_;
  Cache result_;
  std::vector<size_t> order_;
  std::vector<bool> wanted_;
  std::map<int, std::string> ids_;                                // of old records
  std::map<std::pair<std::string, std::string>, Merged> merged_;  // by (digest, id)
  std::map<std::vector<std::string>, int> chains_;                // to places
};

}  // namespace
}  // namespace internal

absl::StatusOr<Cache> Normalize(const Cache& cache) { return internal::Normalizer(cache).Run(); }

absl::StatusOr<Cache> MergeCaches(const std::vector<Cache>& caches) {
  Cache all;
  for (const Cache& cache : caches) {
    RETURN_IF_ERROR(internal::CheckGraph(cache));
    const int layers = static_cast<int>(all.layers.size());
    const int records = static_cast<int>(all.records.size());
    for (CacheLayer layer : cache.layers) {
      if (layer.parent >= 0) layer.parent += layers;
      all.layers.push_back(layer);
    }
    for (CacheRecord record : cache.records) {
      for (CacheResult& result : record.results) result.layer += layers;
      for (std::vector<CacheLink>& input : record.inputs) {
        for (CacheLink& link : input) link.record += records;
      }
      all.records.push_back(std::move(record));
    }
    all.blobs.insert(cache.blobs.begin(), cache.blobs.end());
  }
  return Normalize(all);
}

absl::StatusOr<Cache> KeepMin(const Cache& cache) {
  ASSIGN_OR_RETURN(Cache kept, Normalize(cache));
  std::vector<bool> linked(kept.records.size(), false);
  for (const CacheRecord& record : kept.records) {
    for (const std::vector<CacheLink>& input : record.inputs) {
      for (const CacheLink& link : input) linked[static_cast<size_t>(link.record)] = true;
    }
  }
  std::vector<bool> part(kept.layers.size(), false);
  for (size_t i = 0; i < kept.records.size(); ++i) {
    if (linked[i]) continue;
    for (const CacheResult& result : kept.records[i].results) {
      for (int at = result.layer; at >= 0; at = kept.layers[static_cast<size_t>(at)].parent) {
        part[static_cast<size_t>(at)] = true;
      }
    }
  }
  for (CacheRecord& record : kept.records) {
    std::erase_if(record.results,
                  [&](const CacheResult& result) { return !part[static_cast<size_t>(result.layer)]; });
  }
  return Normalize(kept);
}

}  // namespace lazyblob::exporter
