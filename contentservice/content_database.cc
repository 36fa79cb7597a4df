#include "contentservice/content_database.h"

#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/status.h"

namespace lazyblob::contentservice {
namespace {

using Query = base::Sqlite::Query;
using Transaction = base::Sqlite::Transaction;

constexpr int32_t kApplicationId = 0x6c7a6263;  // "lzbc"

constexpr char kTables[] = R"(
CREATE TABLE blobs(
  digest   TEXT PRIMARY KEY,
  size     INTEGER NOT NULL,
  created  INTEGER NOT NULL,
  updated  INTEGER NOT NULL,
  verified INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE labels(
  digest TEXT NOT NULL REFERENCES blobs(digest) ON DELETE CASCADE,
  key    TEXT NOT NULL,
  value  TEXT NOT NULL,
  PRIMARY KEY(digest, key)) WITHOUT ROWID;
)";

absl::StatusOr<base::Digest> DigestOf(const std::string& text) {
  auto digest = base::Digest::Parse(text);
  if (!digest.ok()) return absl::DataLossError(absl::StrCat("content.db: ", digest.status().message()));
  return digest;
}

absl::Status DeleteBlob(Transaction& db, const base::Digest& digest) {
  const std::string text = digest.ToString();
  ASSIGN_OR_RETURN(Query query, db.Prepare("DELETE FROM blobs WHERE digest = ?"));
  return query.Bind(text).Run();
}

absl::Status PutBlob(Transaction& db, const BlobRecord& record) {
  RETURN_IF_ERROR(DeleteBlob(db, record.info.digest));
  const std::string digest = record.info.digest.ToString();
  {
    ASSIGN_OR_RETURN(
        Query query,
        db.Prepare("INSERT INTO blobs(digest, size, created, updated, verified) VALUES(?, ?, ?, ?, ?)"));
    RETURN_IF_ERROR(query.Bind(digest)
                        .Bind(static_cast<int64_t>(record.info.size))
                        .Bind(absl::ToUnixNanos(record.info.created))
                        .Bind(absl::ToUnixNanos(record.info.updated))
                        .Bind(int64_t{record.verified})
                        .Run());
  }
  for (const auto& [key, value] : record.info.labels) {
    ASSIGN_OR_RETURN(Query query, db.Prepare("INSERT INTO labels(digest, key, value) VALUES(?, ?, ?)"));
    RETURN_IF_ERROR(query.Bind(digest).Bind(key).Bind(value).Run());
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<base::Sqlite>> OpenDatabase(const std::string& root) {
  RETURN_IF_ERROR(base::MakeDirectories(root));
  base::SqliteSchema schema;
  schema.application_id = kApplicationId;
  schema.tables = kTables;
  schema.if_damaged = "move the whole directory away to start with an empty content store";
  return base::Sqlite::Open(root + "/content.db", schema);
}

absl::StatusOr<std::vector<BlobRecord>> LoadBlobs(base::Sqlite& database) {
  std::vector<BlobRecord> records;
  const absl::Status status = database.Read([&](Transaction& db) -> absl::Status {
    std::map<std::string, size_t> places;
    ASSIGN_OR_RETURN(Query blobs, db.Prepare("SELECT digest, size, created, updated, verified FROM blobs"));
    for (;;) {
      ASSIGN_OR_RETURN(bool row, blobs.Step());
      if (!row) break;
      BlobRecord record;
      ASSIGN_OR_RETURN(record.info.digest, DigestOf(blobs.Text(0)));
      record.info.size = static_cast<uint64_t>(blobs.Int(1));
      record.info.created = absl::FromUnixNanos(blobs.Int(2));
      record.info.updated = absl::FromUnixNanos(blobs.Int(3));
      record.verified = blobs.Int(4) != 0;
      places[blobs.Text(0)] = records.size();
      records.push_back(std::move(record));
    }
    ASSIGN_OR_RETURN(Query labels, db.Prepare("SELECT digest, key, value FROM labels"));
    for (;;) {
      ASSIGN_OR_RETURN(bool row, labels.Step());
      if (!row) return absl::OkStatus();
      auto place = places.find(labels.Text(0));
      if (place != places.end()) records[place->second].info.labels[labels.Text(1)] = labels.Text(2);
    }
  });
  RETURN_IF_ERROR(status);
  return records;
}

absl::Status PutBlobs(base::Sqlite& database, absl::Span<const BlobRecord> records) {
  return database.Write([&](Transaction& db) -> absl::Status {
    for (const BlobRecord& record : records) RETURN_IF_ERROR(PutBlob(db, record));
    return absl::OkStatus();
  });
}

absl::Status DeleteBlobs(base::Sqlite& database, absl::Span<const base::Digest> digests) {
  return database.Write([&](Transaction& db) -> absl::Status {
    for (const base::Digest& digest : digests) RETURN_IF_ERROR(DeleteBlob(db, digest));
    return absl::OkStatus();
  });
}

}  // namespace lazyblob::contentservice
