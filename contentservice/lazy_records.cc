#include "contentservice/lazy_records.h"

#include <utility>

#include "base/json.h"
#include "base/status.h"

namespace lazyblob::contentservice {
namespace {

using nlohmann::json;
using Transaction = base::Sqlite::Transaction;

constexpr int32_t kApplicationId = 0x6c7a6c62;
constexpr uint64_t kMaxColumnBytes = 16 << 20;
constexpr char kTables[] =
    "CREATE TABLE blobs(digest TEXT PRIMARY KEY, size INTEGER NOT NULL, media_type TEXT NOT NULL,"
    " annotations TEXT NOT NULL, repositories TEXT NOT NULL, failed TEXT NOT NULL, held INTEGER NOT NULL,"
    " labels TEXT NOT NULL, created INTEGER NOT NULL, updated INTEGER NOT NULL) WITHOUT ROWID;"
    "CREATE TABLE images(manifest TEXT PRIMARY KEY, namespaces TEXT NOT NULL, repositories TEXT NOT NULL)"
    " WITHOUT ROWID;";

std::string Text(const json& value) { return value.dump(-1, ' ', false, json::error_handler_t::replace); }

// A list or map of strings.
template <typename Value>
absl::Status Load(const std::string& text, Value* value) {
  ASSIGN_OR_RETURN(const json parsed, base::ParseJson(text, kMaxColumnBytes));
  for (const auto& [key, member] : parsed.items()) {
    if (!member.is_string()) return absl::DataLossError("lazy.db: a list holds something that is no text");
    std::string element = member.template get<std::string>();
    if constexpr (std::is_same_v<Value, std::vector<std::string>>) {
      value->push_back(std::move(element));
    } else if constexpr (std::is_same_v<Value, std::set<std::string>>) {
      value->insert(std::move(element));
    } else {
      value->emplace(key, std::move(element));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<LazyRecord> ReadBlob(const base::Sqlite::Query& row) {
  LazyRecord record;
  ASSIGN_OR_RETURN(record.blob.digest, base::Digest::Parse(row.Text(0)));
  if (row.Int(1) < 0) return absl::DataLossError("lazy.db: a blob of a negative size");
  record.blob.size = static_cast<uint64_t>(row.Int(1));
  record.blob.media_type = row.Text(2);
  RETURN_IF_ERROR(Load(row.Text(3), &record.blob.annotations));
  RETURN_IF_ERROR(Load(row.Text(4), &record.repositories));
  RETURN_IF_ERROR(Load(row.Text(5), &record.failed));
  record.held = row.Int(6) != 0;
  RETURN_IF_ERROR(Load(row.Text(7), &record.labels));
  record.created = absl::FromUnixNanos(row.Int(8));
  record.updated = absl::FromUnixNanos(row.Int(9));
  return record;
}

}  // namespace

absl::StatusOr<std::unique_ptr<LazyRecords>> LazyRecords::Open(const std::string& path) {
  ASSIGN_OR_RETURN(
      auto database,
      base::Sqlite::Open(path, {.application_id = kApplicationId, .version = 1, .tables = kTables}));
  return std::unique_ptr<LazyRecords>(new LazyRecords(std::move(database)));
}

absl::StatusOr<std::vector<LazyRecord>> LazyRecords::Blobs() {
  std::vector<LazyRecord> records;
  RETURN_IF_ERROR(database_->Read([&](Transaction& transaction) -> absl::Status {
    ASSIGN_OR_RETURN(auto query,
                     transaction.Prepare("SELECT digest, size, media_type, annotations, repositories, failed,"
                                         " held, labels, created, updated FROM blobs"));
    while (true) {
      ASSIGN_OR_RETURN(bool more, query.Step());
      if (!more) return absl::OkStatus();
      ASSIGN_OR_RETURN(LazyRecord record, ReadBlob(query));
      records.push_back(std::move(record));
    }
  }));
  return records;
}

absl::StatusOr<std::vector<ImageRecord>> LazyRecords::Images() {
  std::vector<ImageRecord> records;
  RETURN_IF_ERROR(database_->Read([&](Transaction& transaction) -> absl::Status {
    ASSIGN_OR_RETURN(auto query,
                     transaction.Prepare("SELECT manifest, namespaces, repositories FROM images"));
    while (true) {
      ASSIGN_OR_RETURN(bool more, query.Step());
      if (!more) return absl::OkStatus();
      ImageRecord record;
      ASSIGN_OR_RETURN(record.manifest, base::Digest::Parse(query.Text(0)));
      RETURN_IF_ERROR(Load(query.Text(1), &record.namespaces));
      RETURN_IF_ERROR(Load(query.Text(2), &record.repositories));
      records.push_back(std::move(record));
    }
  }));
  return records;
}

absl::Status LazyRecords::Put(const LazyRecord& record) {
  const std::string digest = record.blob.digest.ToString();
  const std::string annotations = Text(json(record.blob.annotations));
  const std::string repositories = Text(json(record.repositories));
  const std::string failed = Text(json(record.failed));
  const std::string labels = Text(json(record.labels));
  return database_->Write([&](Transaction& transaction) -> absl::Status {
    ASSIGN_OR_RETURN(auto query,
                     transaction.Prepare("INSERT OR REPLACE INTO blobs VALUES(?,?,?,?,?,?,?,?,?,?)"));
    query.Bind(digest).Bind(static_cast<int64_t>(record.blob.size)).Bind(record.blob.media_type);
    query.Bind(annotations).Bind(repositories).Bind(failed).Bind(int64_t{record.held}).Bind(labels);
    query.Bind(absl::ToUnixNanos(record.created)).Bind(absl::ToUnixNanos(record.updated));
    return query.Run();
  });
}

absl::Status LazyRecords::Put(const ImageRecord& record) {
  const std::string manifest = record.manifest.ToString();
  const std::string namespaces = Text(json(record.namespaces));
  const std::string repositories = Text(json(record.repositories));
  return database_->Write([&](Transaction& transaction) -> absl::Status {
    ASSIGN_OR_RETURN(auto query, transaction.Prepare("INSERT OR REPLACE INTO images VALUES(?,?,?)"));
    return query.Bind(manifest).Bind(namespaces).Bind(repositories).Run();
  });
}

absl::Status LazyRecords::RemoveBlob(const base::Digest& digest) {
  const std::string text = digest.ToString();
  return database_->Write([&](Transaction& transaction) -> absl::Status {
    ASSIGN_OR_RETURN(auto query, transaction.Prepare("DELETE FROM blobs WHERE digest = ?"));
    return query.Bind(text).Run();
  });
}

absl::Status LazyRecords::RemoveImage(const base::Digest& manifest) {
  const std::string text = manifest.ToString();
  return database_->Write([&](Transaction& transaction) -> absl::Status {
    ASSIGN_OR_RETURN(auto query, transaction.Prepare("DELETE FROM images WHERE manifest = ?"));
    return query.Bind(text).Run();
  });
}

}  // namespace lazyblob::contentservice
